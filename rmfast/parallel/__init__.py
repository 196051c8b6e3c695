"""Processes, engines and the optimizer."""
