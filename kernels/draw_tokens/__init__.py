"""Drawing the next token of many sequences: exact, by counter-based noise, over vocabulary shards."""

from rmfast.kernels.draw_tokens.noise import row_keys
from rmfast.kernels.draw_tokens.op import Drawn, draw_tokens

__all__ = ["Drawn", "draw_tokens", "row_keys"]
