"""rmfast data denoise: what denoising by strength does to the data, before anything is trained on it."""

import math
import os
from argparse import Namespace
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.commands.flags import out_files, write_file
from rmfast.commands.words import columns_of
from rmfast.config import read_denoise
from rmfast.console import say
from rmfast.data.columns import BY_NAME, IGNORE, REPEATED, Columns, UsedAs, uses_line, uses_of
from rmfast.data.denoise import MAKE_STRENGTHS, Denoised, denoise_edges, quantile_slice, spread
from rmfast.data.example import BadRow, Example, Response
from rmfast.data.notes import Notes, add_notes, note_lines
from rmfast.data.rows import read_row
from rmfast.data.sources import read_rows, source_root, split_note
from rmfast.errors import UserError
from rmfast.jsonio import json_line
from rmfast.outputs.kinds import DENOISED, PICTURE
from rmfast.outputs.overlap import Input
from rmfast.report.ensemble.plots import strength_plot
from rmfast.report.plots import render

Labelled = tuple[str, dict[str, Any], Example]
"""("file:row", columns, what they mean)"""

COLUMNS = ("strength", "margin", "target", "weight")
_KEPT = ("strength_mean", "strength_std", "tools", "chat_template_kwargs")  # besides those that a row does not use
_TEXT = 110  # characters shown of a prompt or a response


def preview(options: Namespace) -> None:
    """rmfast data denoise"""
    given = {name: words for name, words in vars(options).items() if name.startswith("denoise.") and words is not None}
    wanted = read_denoise(options.preset, {name.removeprefix("denoise."): words for name, words in given.items()})
    inputs = [Input("PATH", Path(source_root(source))) for source in options.sources]
    out, plot = out_files(inputs, ("--out", options.out, DENOISED), ("--plot", options.plot, PICTURE))
    data, seen = _Data(options.sources, columns_of(options)), _Seen()
    rows_read, arrays = _edges_of(data.examples(seen))
    denoised = denoise_edges(wanted, **arrays)
    if plot is not None and not denoised.known.any():
        raise UserError(f"--plot: no edge has a strength; {MAKE_STRENGTHS}")
    say(f"{', '.join(options.sources)}: {rows_read:,} rows; denoise ({wanted}): {denoised.summary()}")
    for source in dict.fromkeys(options.sources):
        found = [split_note(source), f"columns: {uses_line(uses_of(seen.uses[source]))}"]
        say("\n".join(f"{source}: {line}" for line in (*filter(None, found), *note_lines(seen.notes[source]))))
    if seen.bad:
        say(f"left out: {', '.join(f'{n:,} {cause}' for cause, n in seen.bad.items())} (rmfast data report)")
    say("\n".join(["", *_by_tenth(arrays, denoised)]))
    shown = _shown(arrays["strength"], denoised, options.examples)
    examples = _examples_of(data, arrays, denoised, shown)
    for number in shown:
        say("\n".join(["", *examples[number]]))
    if out is not None:
        rows = (f"{json_line(row)}\n".encode() for row in _denoised_rows(data, denoised))
        say(f"\n{write_file(out, rows):,} rows written, one for each edge: {out}")
    if plot is not None:
        write_file(plot, [render(strength_plot(arrays["strength"], denoised))])
        say(f"\nHistogram: {plot}")


@dataclass(frozen=True)
class _Seen:
    """What was found in the rows: bad ones by cause; uses of columns, and notes, by source."""

    bad: Counter[str] = field(default_factory=Counter)
    uses: defaultdict[str, Counter[UsedAs]] = field(default_factory=lambda: defaultdict(Counter))
    notes: defaultdict[str, Notes] = field(default_factory=lambda: defaultdict(dict))


@dataclass(frozen=True)
class _Data:
    """What is looked at: sources, and what their columns are."""

    sources: Sequence[str]
    columns: Columns

    def examples(self, seen: _Seen) -> Iterator[Labelled]:
        """The usable rows."""
        for source in self.sources:
            for file, number, row in read_rows(source, "train"):
                label = f"{file}:{number}"
                try:
                    example = read_row(label, row, self.columns)
                except BadRow as error:
                    seen.bad[error.cause] += 1
                else:
                    assert isinstance(row, dict)
                    seen.uses[source][example.columns] += 1
                    add_notes(seen.notes[source], ((label, note) for note in example.notes))
                    yield label, row, example


def _edges_of(examples: Iterator[Labelled]) -> tuple[int, dict[str, np.ndarray]]:
    """Number of rows, and the columns of all edges that `denoise_edges` takes, weights as training has them."""
    columns = {name: array("f") for name in COLUMNS}
    identical = array("b")
    rows = 0
    for _, _, example in examples:
        rows += 1
        responses = example.responses
        same = [responses[edge.better] == responses[edge.worse] for edge in example.edges]
        shares = 1 if example.per_edge_weight else max(1, len(same) - sum(same))
        for edge, is_same in zip(example.edges, same, strict=True):
            columns["strength"].append(edge.strength_mean)
            columns["margin"].append(edge.margin)
            columns["target"].append(edge.target)
            columns["weight"].append(0.0 if is_same else edge.weight / shares)
            identical.append(is_same)
    if not rows:
        raise UserError("no usable row in the data; rmfast data report says why")
    arrays = {name: np.frombuffer(column, dtype=np.float32) for name, column in columns.items()}
    return rows, arrays | {"identical": np.frombuffer(identical, dtype=np.bool_)}


def _by_tenth(arrays: dict[str, np.ndarray], denoised: Denoised) -> list[str]:
    """A line for each tenth of the edges by their strength in the data, one for those without."""
    strength, weight = arrays["strength"], arrays["weight"]
    head = f"{'tenth':>5} {'strength':>20} {'edges':>9} {'flipped':>9} {'dropped':>9} {'smoothed':>9}"
    lines = [f"{head}  {'margin min / median / max':>27} {'target':>7} {'weight':>7}"]
    tenths = [quantile_slice(strength, denoised.known, (i / 10, (i + 1) / 10)) for i in range(10)]
    named = [(str(i), mask) for i, mask in enumerate(tenths, start=1)] + [("none", np.isnan(strength))]
    for name, mask in named:
        if not mask.any():
            continue
        low_high = "" if name == "none" else f"{strength[mask].min():.4g} to {strength[mask].max():.4g}"
        counts = (mask, *(mask & part for part in (denoised.flipped, denoised.dropped, denoised.smoothed)))
        kept = mask & ~denoised.dropped
        factor = denoised.weight[kept & (weight > 0)] / weight[kept & (weight > 0)]
        ends = f"{_mean(denoised.target[kept])} {_mean(factor)}"
        numbers = " ".join(f"{part.sum():>9,}" for part in counts)
        lines.append(f"{name:>5} {low_high:>20} {numbers}  {spread(denoised.margin[kept]):>27} {ends}")
    return [
        *lines,
        "Margins and mean targets of the edges that are kept; weight: mean factor on the data's weight.",
    ]


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():>7.3f}" if len(values) else f"{'-':>7}"


def _shown(strength: np.ndarray, denoised: Denoised, most: int) -> dict[int, str]:
    """Edges to show with what happened to them: of each kind those at both ends of strength."""
    rest = denoised.kept & ~denoised.flipped & ~denoised.smoothed
    kinds = {
        "flipped": denoised.flipped,
        "dropped": denoised.dropped,
        "smoothed": denoised.smoothed & denoised.known,
        "margin": rest & (denoised.options.margin != "none"),
        "weight": rest & (denoised.options.weight_temperature is not None),
    }
    shown: dict[int, str] = {}
    for kind, mask in kinds.items():
        mask = mask.copy()
        mask[list(shown)] = False
        edges = np.flatnonzero(mask)
        edges = edges[np.argsort(strength[edges], kind="stable")]
        some = min(most, len(edges))
        shown |= {int(edge): kind for edge in (*edges[: (some + 1) // 2], *edges[len(edges) - some // 2 :])}
    return shown


def _each_edge(data: _Data) -> Iterator[tuple[int, str, dict[str, Any], Example, int]]:
    """Number of the edge, label and columns of its row, the example and the edge's position in it."""
    numbers = count()
    for label, row, example in data.examples(_Seen()):
        for position in range(len(example.edges)):
            yield next(numbers), label, row, example, position


def _examples_of(
    data: _Data, arrays: dict[str, np.ndarray], denoised: Denoised, shown: dict[int, str]
) -> dict[int, list[str]]:
    """The lines that show some edges, by number; the data is read up to the last of them."""
    return {
        number: _before_and_after(f"{shown[number]}: {label}", example, position, number, arrays, denoised)
        for number, label, _, example, position in islice(_each_edge(data), max(shown, default=-1) + 1)
        if number in shown
    }


def _denoised_rows(data: _Data, denoised: Denoised) -> Iterator[dict[str, Any]]:
    for number, _, row, example, position in _each_edge(data):
        if not denoised.dropped[number]:
            yield _denoised_row(row, example, position, number, denoised)


def _before_and_after(
    title: str, example: Example, position: int, number: int, arrays: dict[str, np.ndarray], denoised: Denoised
) -> list[str]:
    edge = example.edges[position]
    changes = [
        f"{name} {_change(float(arrays[name][number]), float(getattr(denoised, name)[number]))}" for name in COLUMNS
    ]
    prompt, better, worse = _texts(example, edge.better, edge.worse)
    flipped = denoised.flipped[number]
    return [
        f"{title}: {', '.join(changes)}",
        f"  prompt                    {_clip(prompt, end=True)}",
        f"  {'better before, worse now' if flipped else 'better':<25} {_clip(better)}",
        f"  {'worse before, better now' if flipped else 'worse':<25} {_clip(worse)}",
    ]


def _change(before: float, after: float) -> str:
    return f"{before:.4g}" if before == after or math.isnan(before) else f"{before:.4g} -> {after:.4g}"


def _texts(example: Example, better: int, worse: int) -> tuple[str, str, str]:
    """Prompt and both answers; what both responses begin with belongs to the prompt."""
    first, second = (_text(example.responses[r]) for r in (better, worse))
    common = len(os.path.commonprefix([first, second])) if example.prompt is None else 0
    prompt = first[:common] if example.prompt is None else _text(example.prompt)
    return prompt, first[common:], second[common:]


def _text(response: Response) -> str:
    if isinstance(response, str):
        return response
    turns = [f"{m['role']}: {m.get('content') or ''}" if isinstance(m, dict) else str(m) for m in response]
    return " ".join(turns)


def _clip(text: str, end: bool = False) -> str:
    """One short line that any terminal can print."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    if len(line) <= _TEXT:
        return line
    return f"...{line[-_TEXT:]}" if end else f"{line[:_TEXT]}..."


def _denoised_row(
    row: dict[str, Any], example: Example, position: int, number: int, denoised: Denoised
) -> dict[str, Any]:
    """A pair with the denoised columns, as rmfast read the row; columns that mean nothing to it stay.

    Lists (rankings, one chosen over many) become a pair for each edge, which every trainer reads; it has the edge's
    weight, so that the pairs of a list weigh together what the list did.
    """
    edge, flipped = example.edges[position], denoised.flipped[number]
    ends = (edge.worse, edge.better) if flipped else (edge.better, edge.worse)
    row = {
        use if use in _KEPT else name: row[name]
        for name, use in example.columns
        if use in _KEPT or (use in (IGNORE, REPEATED) and name not in BY_NAME)
    }
    suffix = "_ids" if example.has_ids else ""
    prompt: Any = example.prompt
    responses: list[Any] = list(example.responses)
    if example.prompt_ids:
        prompt, responses = responses[0][: example.prompt_ids], [ids[example.prompt_ids :] for ids in responses]
    values: dict[str, Any] = {f"prompt{suffix}": prompt} if prompt is not None else {}
    values |= {f"{name}{suffix}": responses[r] for name, r in zip(("chosen", "rejected"), ends, strict=True)}
    # Through text: the fewest digits that give the same float32.
    values |= {name: float(str(getattr(denoised, name)[number])) for name in ("margin", "target", "weight")}
    # What `rmfast score` wrote in the row is by side and edge, too.
    sign = -1 if flipped else 1
    scored = {"strength_mean": sign * edge.strength_mean, "strength_std": edge.strength_std}
    values |= {name: value for name, value in scored.items() if name in row}
    members = _members(row.get("rewards"), len(example.responses))
    if members:
        pairs = [[member[r] for r in ends] for member in members]
        values["rewards"] = pairs if members is row["rewards"] else pairs[0]
    if row.get("votes") is not None:
        votes = row["votes"][position] if isinstance(row["votes"], list) else row["votes"]
        turned = sum(better > worse for better, worse in pairs) if members and flipped else None
        values["votes"] = turned if flipped else votes
    return row | values


def _members(rewards: Any, responses: int) -> list[list[float]]:
    """Rewards of all responses by each model, as `rmfast score` writes them; none where it is something else."""
    lists = rewards if isinstance(rewards, list) and all(isinstance(r, list) for r in rewards) else [rewards]
    return lists if all(isinstance(member, list) and len(member) == responses for member in lists) else []
