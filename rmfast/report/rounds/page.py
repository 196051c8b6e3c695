"""An iteration as one self-contained page, with its figures as JSON beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.data.files import write_text
from rmfast.evaluation.diagnostics.resample import Figure
from rmfast.evaluation.rounds.figures import FIRST, GOLD, Measured, Rounds
from rmfast.evaluation.rounds.findings import Finding
from rmfast.jsonio import finite_or_null, to_json
from rmfast.report.policy.samples import shown_prompt
from rmfast.report.rounds.plots import rounds_plots
from rmfast.report.rounds.words import BY, model_name, named, verdict
from rmfast.report.run_folder import read_run
from rmfast.report.template import page, write_picture

FIGURES = "rounds.json"
COLUMNS = ("Policy", "KL (nats)", "Tokens", "Cut", "Entropy (nats)", "SelfBLEU", "n = 2", "3", "4", "5", "Cosine")


def write_rounds_report(
    run_dir: Path, measured: Measured, found: Rounds, said: Sequence[Finding], rows: Mapping[str, Sequence[Any]]
) -> Path:
    """Write `report/*.png`, `report/rounds.json` and `report/report.html` of an iteration's run folder.

    Args:
        rows: each policy's records of answers, to read some of.

    Returns:
        The page.
    """
    folder = run_dir / "report"
    folder.mkdir(exist_ok=True)
    pictures = [write_picture(plot, folder / f"{plot.name}.png") for plot in rounds_plots(found)]
    values = found.to_json() | {"findings": [to_json(one) for one in said]}
    write_text(folder / FIGURES, json.dumps(finite_or_null(values), indent=1) + "\n")
    line, good = verdict(found)
    models = list(found.policies[FIRST].reward)
    text = page(
        "rounds.html",
        title=run_dir.resolve().name,
        found=found,
        verdict=line,
        good=good,
        findings=said,
        plots=pictures,
        comparisons=[_compared(one) for one in found.comparisons],
        columns=COLUMNS,
        policies=[[named(name), *_figures(one)] for name, one in found.policies.items()],
        models=[model_name(model) for model in models],
        rewards=_by_model(found, models, "reward", "{:+.3f}"),
        gains=_by_model(found, models, "gain", "{:+.2f}"),
        drifts=_by_model(found, models, "drift", "{:.3f}"),
        accuracy=[
            [
                model_name(name),
                f"{one['accuracy']:.1%}",
                f"{100 * one['accuracy_low']:.1f} to {100 * one['accuracy_high']:.1f}",
            ]
            for name, one in found.accuracy.items()
        ],
        reads=_reads(measured, rows),
        config=read_run(run_dir).config,
    )
    write_text(folder / "report.html", text)
    return folder / "report.html"


def cell(one: Figure, form: str) -> str:
    """A figure with its interval in a table's cell."""
    if not np.isfinite(one.value):
        return "–"
    interval = f" ({form.format(one.low)} to {form.format(one.high)})" if np.isfinite(one.low + one.high) else ""
    return form.format(one.value) + interval


def _figures(one: Any) -> list[str]:
    bleu = [f"{one.self_bleu[n].value:.3f}" for n in ("2", "3", "4", "5")]
    shown = [
        cell(one.kl, "{:.3g}"),
        cell(one.length, "{:.1f}"),
        cell(one.cut_share, "{:.0%}"),
        cell(one.entropy, "{:.2f}"),
    ]
    return [*shown, cell(one.self_bleu["mean"], "{:.3f}"), *bleu, cell(one.cosine, "{:.3f}")]


def _compared(one: Any) -> list[str]:
    shares = [f"{share:.0%}" for share in (one.wins, one.ties, one.losses)]
    return [named(one.policy), named(one.against), BY[one.by], cell(one.rate, "{:.1%}"), *shares]


def _by_model(found: Rounds, models: Sequence[str], key: str, form: str) -> list[list[str]]:
    return [
        [named(name), *(cell(getattr(one, key)[model], form) for model in models)]
        for name, one in found.policies.items()
    ]


def _reads(measured: Measured, rows: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Prompts to read: where gold (or the last reward model) of the last round rose most, hardly, and fell most."""
    rounds = [name for name, one in measured.policies.items() if not one.control]
    scores = measured.rewards.get(GOLD) or list(measured.rewards.values())[-1]
    change = scores[rounds[-1]][:, 0] - scores[FIRST][:, 0]
    order = np.argsort(change)
    places = {"rose most": order[-1], "changed as usual": order[len(order) // 2], "fell most": order[0]}
    by = "gold" if GOLD in measured.rewards else "the last reward model"
    return [
        {
            "what": f"Where {by} {what}: {change[place]:+.3f}",
            "prompt": shown_prompt(rows[FIRST][place]["prompt"]),
            "answers": [
                (named(name), float(scores[name][place, 0]), rows[name][place]["responses"][0]) for name in rows
            ],
        }
        for what, place in places.items()
    ]
