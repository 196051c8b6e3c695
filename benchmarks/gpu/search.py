"""The search for tiles and warps: `python -m benchmarks.gpu.search --target NAME --arch 90 --json OUT`.

Every candidate is compiled first, by the rules of tests/kernels/aot.py: one that spills or wants more shared memory
than the device has is not timed. Those of the others that compute what plain torch does take turns with the tile that
the table holds, which is timed twice a round. A winner is faster by 3 % and by as much as these two times differ.
Without a GPU nothing is timed and there is no winner.
"""

import argparse
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.targets import Target, targets
from benchmarks.kernels.timing import apart, limits, measure
from benchmarks.origin import origin, write_json
from rmfast.kernels.tables import ANY
from tests.kernels.aot import Built, build_all, hard_faults
from tests.kernels.variants import Variant, starts, variant

WORTH = 1.03  # times as fast as the tile that holds, or the table stays as it is
CALLS, ROUNDS = 20, 5
MILLISECONDS = 100.0  # of a tile's calls in a round: fewer calls of what takes long, but three


def variants(target: Target, tile: Any, arch: int) -> list[Variant]:
    """What the compiler would be given with a tile on the target's line."""
    with replaced(target, tile, arch):
        started = [one for problem in target.problems(torch.device("cpu"), True) for one in starts(problem, arch)]
    return [variant(target.op, arch, one) for one in started if one.kernel.__name__ == target.kernel]


def replaced(target: Target, tile: Any, arch: int) -> AbstractContextManager[None]:
    """With a tile on the target's line of the table."""
    return target.table[1].replaced((arch, *target.key((arch // 10, arch % 10))[1:]), tile)


def compiled(target: Target, tiles: list[Any], arch: int, processes: int) -> list[dict[str, Any]]:
    """Of each tile what the compiler made of it, and its faults."""
    of_tiles = [variants(target, tile, arch) for tile in tiles]
    built = iter(build_all([one for each in of_tiles for one in each], processes))
    rows = []
    for tile, started in zip(tiles, of_tiles, strict=True):
        made = [(one, next(built)) for one in started]
        faults = [fault for one, result in made for fault in hard_faults(one, result)]
        good = [result for _, result in made if isinstance(result, Built)]
        rows.append({
            "tile": tile._asdict(),
            "faults": faults or ([] if started else ["the kernel did not start"]),
            "registers": max((b.registers for b in good), default=None),
            "shared": max((b.shared for b in good), default=None),
        })  # fmt: skip
    return rows


def usable(device: torch.device, error: Exception) -> None:
    """End the search where an error has cost the process its device: nothing after it would be true.

    Raises:
        RuntimeError: so it is.
    """
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.zeros(1, device=device).add_(1).item()
        except Exception:  # whatever it is, it is raised again as the loss of the device
            raise RuntimeError(f"the device is lost to this process: {error}") from error


def timed(
    target: Target, tiles: list[Any], arch: int, device: torch.device, *, small: bool = False
) -> list[list[float] | str]:
    """Of each tile, the one that holds first: milliseconds of its rounds, or why it has none. Those that compute what
    plain torch does take turns; the tile that holds twice a round, before and after the others."""
    torch.manual_seed(0)
    calls = target.calls(device, small)
    truths: list[Any] = []
    found: list[list[float] | str] = []

    def once(place: int, count: int) -> float:
        with replaced(target, tiles[place], arch):
            return sum(median(measure(call, device, calls=count).milliseconds) for call, _ in calls)

    longest = 0.0
    for place, tile in enumerate(tiles):
        try:
            with replaced(target, tile, arch):
                results = [tensors(call()) for call, _ in calls]
            truths = truths or [tensors(truth()) for _, truth in calls]
            wrong = next((why for pair in zip(results, truths, strict=True) if (why := apart(*pair, bf16=True))), None)
            found.append([] if wrong is None else f"wrong: {wrong}")
            longest = longest if wrong else max(longest, once(place, 2))
        except Exception as error:  # what the device refuses has no time; it is kept
            found.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])
            usable(device, error)
    count = min(CALLS, max(3, int(MILLISECONDS / max(longest, 1e-3))))
    for _ in range(ROUNDS):
        for place in (*range(len(tiles)), 0):
            if isinstance(rounds := found[place], list):
                rounds.append(once(place, count))
    return found


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def tiles_of(target: Target, arch: int, most: int | None) -> list[Any]:
    """The tile that holds, and at most so many others, those first that differ from it in the fewest fields."""
    held = target.held(arch)
    others = [tile for tile in target.candidates if tile != held]
    others.sort(key=lambda tile: sum(a != b for a, b in zip(tile, held, strict=True)))
    return [held, *others][: None if most is None else most + 1]


def line_of(target: Target, tile: Any, arch: int) -> str:
    """A tile's line as the tables write it."""
    key = (arch, *target.key((arch // 10, arch % 10))[1:])
    words = ("ANY" if part == ANY else f'"{part}"' if isinstance(part, str) else str(part) for part in key)
    return f"({', '.join(words)}): {type(tile).__name__}({', '.join(map(str, tile))}),"


def search(
    target: Target, tiles: list[Any], rows: list[dict[str, Any]], arch: int, device: torch.device
) -> dict[str, Any]:
    """All that was tried for one line, `rows` as `compiled` gives them; `winner` is None where the table should stay as
    it is."""
    fit = [place for place, row in enumerate(rows) if not row["faults"]]
    if device.type == "cuda":
        for place, times in zip(fit, timed(target, [tiles[place] for place in fit], arch, device), strict=True):
            rows[place] |= {"faults": [times]} if isinstance(times, str) else {
                "milliseconds": median(times), "rounds": times,
            }  # fmt: skip
    held = rows[0].get("rounds")
    spread = abs(median(held[::2]) / median(held[1::2]) - 1) if held else 0.0
    now = rows[0].get("milliseconds")
    ranked = sorted((row for row in rows[1:] if "rounds" in row), key=lambda row: row["milliseconds"])
    better = [row for row in ranked if now is None or now / row["milliseconds"] >= WORTH + spread]
    line = None if not better else line_of(target, type(tiles[0])(**better[0]["tile"]), arch)
    return {
        "name": target.name, "table": target.table[0], "file": target.file, "line": line, "held": rows[0]["tile"],
        "held_milliseconds": now, "held_spread": spread,
        "winner": better[0]["tile"] if better else None,
        "winner_milliseconds": better[0]["milliseconds"] if better else None, "tried": rows,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    everything = {target.name: target for target in targets()}
    add("--target", nargs="+", choices=list(everything), metavar="NAME", help=f"{', '.join(everything)} (default: all)")
    add("--arch", type=int, default=90, help="of the device: 80, 90, ... (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--most", type=int, help="candidates tried of each line (default: all)")
    add("--processes", type=int, default=14, help="that compile (default: %(default)s)")
    add("--json", type=Path, required=True)
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    # All compiling first: it forks, which a process that has used the device should not.
    made = []
    for name in args.target or everything:
        tiles = tiles_of(everything[name], args.arch, args.most)
        made.append((everything[name], tiles, compiled(everything[name], tiles, args.arch, args.processes)))
    found = [search(target, tiles, rows, args.arch, device) for target, tiles, rows in made]
    result = {"arch": args.arch, "limits": limits(device, small=device.type != "cuda"), "lines": found}
    write_json(args.json, origin(device.type) | result)
    for line in found:
        tried = len(line["tried"])
        print(f"{line['name']}: {tried} tried, winner {line['winner'] or 'the tile that holds'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
