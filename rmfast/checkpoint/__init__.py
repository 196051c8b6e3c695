"""Checkpoints of a run, and models exported from them."""
