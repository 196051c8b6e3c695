"""Tables of tile sizes: which line holds, and lines of a search."""

import pytest

from rmfast.kernels.tables import ANY, Table

TABLE: Table[str] = Table(
    {
        (80, "a", 64): "small",
        (80, "a", 128): "large",
        (90, "a", 128): "large, new",
        (80, "b", ANY): "any",
        (90, "b", 256): "only new",
    }
)


@pytest.mark.parametrize(
    ("capability", "kind", "size", "tile"),
    [
        ((8, 0), "a", 64, "small"),
        ((8, 0), "a", 65, "large"),
        ((8, 9), "a", 128, "large"),
        ((9, 0), "a", 1, "small"),
        ((9, 0), "a", 100, "large, new"),
        ((12, 0), "a", 100, "large, new"),
        ((7, 0), "a", 100, "large"),
        ((9, 0), "b", 10**9, "any"),
        ((9, 0), "b", 256, "only new"),
        ((8, 9), "b", 256, "any"),  # a bound that only a newer generation has
        ((7, 0), "b", 256, "any"),
    ],
)
def test_the_smallest_size_of_the_newest_generation(
    capability: tuple[int, int], kind: str, size: int, tile: str
) -> None:
    assert TABLE.find(capability, kind, size=size) == tile


def test_what_no_line_is_for() -> None:
    with pytest.raises(KeyError, match="size 129"):
        TABLE.find((9, 0), "a", size=129)
    with pytest.raises(KeyError):
        TABLE.find((9, 0), "c", size=1)


def test_a_search_s_line_holds_while_it_lasts() -> None:
    assert TABLE.find((9, 0), "a", size=64) == "small"
    with TABLE.replaced((90, "a", 64), "tried"):
        assert TABLE.find((9, 0), "a", size=64) == "tried" and TABLE.find((8, 0), "a", size=64) == "small"
    assert TABLE.find((9, 0), "a", size=64) == "small"
