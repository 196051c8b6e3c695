"""NVIDIA's apex."""
