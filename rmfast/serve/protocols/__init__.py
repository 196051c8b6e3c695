"""Protocols: what a client posts, and what it gets. Each module reads a body to an `Asked`."""
