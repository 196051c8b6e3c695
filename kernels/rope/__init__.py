"""Rotary position embedding, alone and with the split of a fused QKV product."""

from rmfast.kernels.rope.op import rope, rope_tables, rotate, split_rope

__all__ = ["rope", "rope_tables", "rotate", "split_rope"]
