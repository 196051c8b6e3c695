"""Attention of one query a row onto a shared prompt and the row's own tokens, for sampling."""

from rmfast.kernels.decode_attention.op import decode_attention

__all__ = ["decode_attention"]
