"""Metrics of scores against preferences."""
