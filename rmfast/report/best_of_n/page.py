"""Best-of-N as one self-contained page: proxy against gold over N, figures, and prompts to read."""

from collections.abc import Sequence
from pathlib import Path

from rmfast.data.files import write_text
from rmfast.evaluation.best_of_n.curves import BestOfN, Curve
from rmfast.evaluation.best_of_n.disagree import Disagreement
from rmfast.evaluation.diagnostics.resample import Figure
from rmfast.report.best_of_n.plots import best_of_n_plots
from rmfast.report.best_of_n.words import best_rule, falls, verdict
from rmfast.report.template import page, write, write_picture

COLUMNS = ("Choosing by", "Proxy", "95 % interval", "Gold", "95 % interval", "Of the ceiling", "Highest at N",
           "Fall after it", "Picks below a random response")  # fmt: skip


def write_best_of_n_report(
    folder: Path, found: BestOfN, disagreements: Sequence[Disagreement], *, title: str, notes: Sequence[str] = ()
) -> list[Path]:
    """Write `members.png`, of several members `rules.png`, and `report.html`.

    Args:
        folder: where to; made if it is not there.
        disagreements: prompts to read, the worst first.
        title: what was sampled and judged by whom. notes: sentences on what was left out.

    Returns:
        The files written, the page last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {(file := folder / f"{plot.name}.png"): write_picture(plot, file) for plot in best_of_n_plots(found)}
    curves, last, best = [*found.members, *found.rules], found.counts[-1], best_rule(found)
    text = page(
        "best_of_n/page.html",
        title=title,
        found=found,
        last=last,
        notes=notes,
        plots=list(pictures.values()),
        verdicts=[(curve.name, verdict(curve, last), falls(curve) or curve.gold[-1].side < 1) for curve in curves],
        best=best,
        interval=_interval(best.gold[-1]),
        good=best.gold[-1].side > 0 and not falls(best),
        columns=COLUMNS,
        lines=[_line(curve, found) for curve in curves],
        steps=_steps(found, curves),
        disagreements=disagreements,
    )
    write_text(folder / "report.html", text)
    return [*pictures, folder / "report.html"]


def _line(curve: Curve, found: BestOfN) -> list[str]:
    """A curve at the last N."""
    proxy, gold, ceiling = curve.proxy[-1], curve.gold[-1], found.ceiling[-1].value
    fall = f"{write(curve.fall.value, 'signed')} {_interval(curve.fall)}" if curve.peak < found.counts[-1] else "–"
    return [
        *(curve.name, write(proxy.value, "signed"), _interval(proxy), write(gold.value, "signed"), _interval(gold)),
        write(gold.value / ceiling if ceiling > 0 else float("nan"), "share"),
        *(str(curve.peak), fall, write(curve.below[-1].value, "share")),
    ]


def _steps(found: BestOfN, curves: Sequence[Curve]) -> list[list[str]]:
    """Gold by N, a line each; the bound of the KL divergence first, the ceiling last."""
    rows = [(curve.name, curve.gold) for curve in curves] + [("gold's best (ceiling)", found.ceiling)]
    told = [[name, *(write(one.value, "signed") for one in of_n)] for name, of_n in rows]
    return [["KL divergence, at most (nats)", *(f"{kl:.2f}" for kl in found.kl)], *told]


def _interval(figure: Figure) -> str:
    return f"{figure.low:+.2f} to {figure.high:+.2f}" if figure.low == figure.low else "–"
