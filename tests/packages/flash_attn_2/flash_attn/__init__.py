"""flash_attn."""

__version__ = "2.7.4.post1"
