"""Where a rank's weights lie in the whole ones: what saving, loading and export go by."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from rmfast.models.config import DecoderConfig
from rmfast.models.lora import adapted_parts
from rmfast.models.low_rank import TARGETS
from rmfast.models.weights import EMBEDDING, LM_HEAD

BLOCK = 256
"""Ids that tokens are drawn from together (`draw_tokens`): a rank's share of a vocabulary is of whole blocks."""


def vocabulary_share(vocabulary: int, ranks: int) -> int:
    """Rows of a vocabulary's table that each rank holds; the last rank's may reach beyond its end."""
    return vocabulary if ranks == 1 else -(-vocabulary // (ranks * BLOCK)) * BLOCK


@dataclass(frozen=True)
class Segment:
    """Rows of a rank's part, `local` to `local + count`, that are rows `whole` to `whole + count` of the weight."""

    local: int
    whole: int
    count: int


@dataclass(frozen=True)
class Place:
    """A rank's part of a weight of shape `shape`: some rows, and of each `width` columns from `column` on.

    Rows beyond the last segment belong to no weight (a vocabulary that the ranks do not divide).
    """

    shape: tuple[int, ...]
    segments: tuple[Segment, ...]
    column: int
    width: int

    @property
    def part(self) -> bool:
        """Whether ranks hold different parts."""
        return self.width < (self.shape[1] if len(self.shape) > 1 else 1) or self.segments != (
            Segment(0, 0, self.shape[0]),
        )

    def pieces(self, begin: int, end: int) -> "Iterator[Piece]":
        """A range of the rank's part, which lies row by row, as rectangles of the weight."""
        for first, last, left, right in _rectangles(begin, end, self.width):
            for segment in self.segments:
                top, bottom = max(first, segment.local), min(last, segment.local + segment.count)
                if top < bottom:
                    offset = top * self.width + left - begin
                    size = (bottom - top, right - left) if len(self.shape) > 1 else (bottom - top,)
                    yield Piece(offset, size, segment.whole + top - segment.local, self.column + left)


@dataclass(frozen=True)
class Piece:
    """A rectangle of a weight: `size` elements of a flat range from `offset` on; its first row and column."""

    offset: int
    size: tuple[int, ...]
    row: int
    column: int

    @property
    def columns(self) -> tuple[int, int] | None:
        """First and last (exclusive) column; None for a weight of one dimension."""
        return (self.column, self.column + self.size[1]) if len(self.size) > 1 else None

    def of(self, flat: Tensor) -> Tensor:
        """Its elements of the range that it was made for: a view."""
        count = self.size[0] * (self.size[1] if len(self.size) > 1 else 1)
        return flat[self.offset : self.offset + count].view(self.size)


def _rectangles(begin: int, end: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows (first, last exclusive) and columns: the range's first, whole and last rows."""
    first, last = -(-begin // width), end // width
    if first > last:
        yield last, last + 1, begin - last * width, end - last * width
        return
    if begin < first * width:
        yield first - 1, first, begin - (first - 1) * width, width
    if first < last:
        yield first, last, 0, width
    if last * width < end:
        yield last, last + 1, 0, end - last * width


def place_of(
    config: DecoderConfig,
    name: str,
    shape: tuple[int, ...],
    *,
    ranks: int,
    rank: int,
    targets: tuple[str, ...] = TARGETS,
) -> Place:
    """What a tensor-parallel rank holds of a weight, by our name for it and its whole shape.

    Args:
        targets: of the model's adapter.
    """
    width = shape[1] if len(shape) > 1 else 1
    layer, _, half = name.partition(".adapters.")
    kind = (layer if half else layer.rpartition(".")[0]).rpartition(".")[2] or name
    if name in (EMBEDDING, LM_HEAD):
        each = vocabulary_share(shape[0], ranks)
        start = rank * each
        return Place(shape, (Segment(0, start, min(each, shape[0] - start)),), 0, width)
    if kind in ("qkv", "gate_up") and not half.endswith(".a"):
        segments, local, whole = [], 0, 0
        for rows in _joined(config, kind, layer if half else "", targets):
            segments.append(Segment(local, whole + rank * (rows // ranks), rows // ranks))
            local, whole = local + rows // ranks, whole + rows
        return Place(shape, tuple(segments), 0, width)
    if kind in ("out", "down") and len(shape) > 1 and not half.endswith(".b"):
        return Place(shape, (Segment(0, 0, shape[0]),), rank * (width // ranks), width // ranks)
    return Place(shape, (Segment(0, 0, shape[0]),), 0, width)


def _joined(config: DecoderConfig, kind: str, adapted: str, targets: tuple[str, ...]) -> list[int]:
    """Rows of the weights that lie one below the other in ours, or in the B of an adapter of a layer."""
    if adapted:
        return [part.end - part.begin for part in adapted_parts(config, targets)[adapted]]
    if kind == "gate_up":
        return [config.ffn] * 2
    return [rows * config.head_dim for rows in (config.heads, config.kv_heads, config.kv_heads)]
