"""One self-contained page about a run: no script, no network, dark and light, readable on a phone."""

import base64
from html import escape
from pathlib import Path

import numpy as np

from rmfast.report.plots import DARK, Plot, all_plots, render
from rmfast.report.summary import Run, Scores, accuracy_line, baseline, number, percent, read_run, verdict

WORST = 10  # rows of the table of mistakes

# Rows of the table of final metrics: key, what it says, how it is written.
METRICS = (
    ("accuracy", "Accuracy (pairs ranked right)", "share"),
    ("loss", "Loss (nats)", "real"),
    ("margin", "Mean margin, better - worse (logits)", "real"),
    ("calibration_error", "Calibration error", "share"),
    ("mean_reward", "Mean reward (logits)", "real"),
    ("std_reward", "Standard deviation of reward", "real"),
    ("min_reward", "Least reward", "real"),
    ("max_reward", "Greatest reward", "real"),
    ("mean_better", "Mean reward of better replies", "real"),
    ("mean_worse", "Mean reward of worse replies", "real"),
    ("longer_wins", 'Accuracy of "longer wins"', "share"),
    ("shorter_wins", 'Accuracy of "shorter wins"', "share"),
    ("length_correlation", "Correlation of reward with length", "real"),
    ("edges", "Pairs", "count"),
    ("ties", "Ties (count as wrong)", "count"),
    ("nonfinite", "Scores that are not finite", "count"),
    ("contrastive_loss", "Contrastive loss", "real"),
    ("feature_overlap", "Cosine of better and worse features", "real"),
    ("difference_loss", "MetaRM: difference loss J", "real"),
    ("reward_difference_variance", "MetaRM: variance of reward differences", "real"),
    ("grad_norm", "Gradient norm", "real"),
    ("learning_rate", "Learning rate", "real"),
    ("epoch", "Epochs", "real"),
    ("num_tokens", "Tokens seen", "count"),
    ("tokens_per_second", "Tokens per second", "count"),
    ("pairs_per_second", "Pairs per second", "real"),
    ("step_seconds", "Seconds per step", "real"),
    ("mfu", "Model FLOP utilisation", "share"),
    ("padding_share", "Slots that held no token", "share"),
    ("prefix_saved_share", "Tokens saved by shared prompts", "share"),
    ("memory_gib", "Memory (GiB)", "real"),
)

STYLE = """
:root { color-scheme: light dark; --paper: #f6f8fa; --card: #fff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --good: #0072b2; --bad: #b34700; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --card: #161b22; --ink: #e6edf3; --soft: #9aa4b0;
  --line: #3d444d; --good: #56b4e9; --bad: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p { margin: .4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; }
.big { font-size: 2.6rem; font-weight: 700; line-height: 1.1; margin: 0; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.good, .bad { margin-bottom: .8rem; }
.good { border-left: 6px solid var(--good); }
.bad { border-left: 6px solid var(--bad); }
.facts { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: .8rem 0 0; padding: 0; list-style: none; }
.facts b { font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .6rem; }
img { display: block; width: 100%; height: auto; }
figcaption { padding: .3rem .3rem 0; }
.scroll { overflow-x: auto; padding: .3rem .8rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
tr:last-child td { border-bottom: 0; }
@media (max-width: 32rem) { body { padding: .8rem .5rem 2rem; } figure { padding: .3rem; }
  .scroll { padding: .2rem .5rem; }
  table { font-size: .8rem; } th, td { padding-right: .4rem; } }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: .85rem/1.45 ui-monospace, Consolas, monospace; }
"""


def write_report(run_dir: str | Path) -> list[Path]:
    """Write `report/*.png` and `report/report.html` of a run folder; what the run lacks is left out and named.

    Returns:
        The files written, the page last.

    Raises:
        UserError: the folder does not exist.
    """
    run = read_run(Path(run_dir))
    folder = run.path / "report"
    folder.mkdir(exist_ok=True)
    plots = all_plots(run)
    files, figures = [], []
    for plot in plots:
        light = render(plot)
        files.append(folder / f"{plot.name}.png")
        files[-1].write_bytes(light)
        figures.append(_figure(plot, light, render(plot, DARK)))
    page = folder / "report.html"
    page.write_text(report_page(run, figures), encoding="utf-8")
    return [*files, page]


def report_page(run: Run, figures: list[str]) -> str:
    """The page's HTML. `figures` is ready HTML; every other text is escaped here."""
    name = escape(run.path.resolve().name)
    mistakes = [_mistakes(set_name, scores) for set_name, scores in run.finals.items()]
    parts = [
        f"<h1>rmfast run: {name}</h1>",
        _headline(run),
        _notes(run),
        f'<h2>Plots</h2><div class="plots">{"".join(figures)}</div>' if figures else "",
        _metrics_table(run),
        *mistakes,
        _config(run),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>rmfast: {name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _headline(run: Run) -> str:
    """Held-out accuracy against the baseline, a card for each held-out set, and the run's size in a line."""
    cards = []
    for name, rows in run.evals.items():
        last = rows[-1]
        _, share = baseline(last)
        # A bare reading of the interval: where it does not clear the baseline, the colour says so too.
        tone = "good" if number(last, "accuracy_low") > share and not number(last, "nonfinite") > 0 else "bad"
        interval = accuracy_line(last).partition(" (")[2].rstrip(")")
        cards.append(
            f'<div class="card {tone}"><p class="soft">Held-out accuracy on {escape(name)}, '
            f"step {number(last, 'step'):,.0f}</p>"
            f'<p class="big">{percent(number(last, "accuracy"))}</p><p>{escape(interval)}</p>'
            f"<p>{escape(verdict(last))}</p></div>"
        )
    if not cards:
        cards.append(
            '<div class="card bad"><p>No held-out evaluation: nothing tells how well this model ranks.</p></div>'
        )
    if run.train:
        last = run.train[-1]
        facts = [("step", "steps", "count"), ("epoch", "epochs", "real"), ("num_tokens", "tokens", "count")]
        items = [f"<li><b>{_write(number(last, key), kind)}</b> {unit}</li>" for key, unit, kind in facts]
        cards.append(f'<ul class="facts">{"".join(items)}</ul>')
    return "\n".join(cards)


def _figure(plot: Plot, light: bytes, dark: bytes) -> str:
    """Both themes inside the page; the browser picks."""
    bright, dim = (f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in (light, dark))
    return (
        f'<figure class="card"><picture><source media="(prefers-color-scheme: dark)" srcset="{dim}">'
        f'<img src="{bright}" alt="{escape(plot.title)}"></picture>'
        f"<figcaption>{escape(plot.note)}</figcaption></figure>"
    )


def _metrics_table(run: Run) -> str:
    """Last values of training and of each held-out set; rows that nobody knows are left out."""
    columns = [(f"held out: {name}", rows[-1]) for name, rows in run.evals.items()]
    columns += [("train, last step", run.train[-1])] if run.train else []
    lines = []
    for key, label, kind in METRICS:
        values = [number(row, key) for _, row in columns]
        if np.isfinite(values).any():
            lines.append([label, *(_write(value, kind) for value in values)])
    if not lines:
        return ""
    return "<h2>Final metrics</h2>" + _table(["", *(name for name, _ in columns)], lines)


def _mistakes(name: str, scores: Scores) -> str:
    """The held-out rows that the final model gets most confidently wrong, one edge a row of the data."""
    margin = scores.scores[scores.better] - scores.scores[scores.worse]
    # Broken scores first, then the most negative margin.
    order = np.argsort(np.where(np.isfinite(margin), margin, -np.inf), kind="stable")
    worst: dict[str, int] = {}
    for edge in order:
        if len(worst) == WORST or margin[edge] > 0:
            break
        worst.setdefault(str(scores.labels[scores.better[edge]]), int(edge))
    if not worst:
        return ""
    lines = []
    for label, edge in worst.items():
        ends = (int(scores.better[edge]), int(scores.worse[edge]))
        rewards = [_write(float(scores.scores[end]), "signed") for end in ends]
        lengths = " / ".join(_write(float(scores.lengths[end]), "count") for end in ends)
        lines.append([label, _write(float(margin[edge]), "signed"), *rewards, lengths])
    head = ["Row", "Margin", "Reward, better", "Reward, worse", "Tokens, better / worse"]
    intro = "<p class='soft'>The rows where the model prefers the worse reply most: hard pairs, or wrong labels.</p>"
    return f"<h2>Most confidently wrong on {escape(name)}</h2>{intro}{_table(head, lines)}"


def _notes(run: Run) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return f'<h2>Missing from this report</h2><ul class="soft">{items}</ul>' if items else ""


def _config(run: Run) -> str:
    if run.config is None:
        return ""
    return (
        f'<h2>Config</h2><details class="card"><summary>config.yaml</summary><pre>{escape(run.config)}</pre></details>'
    )


def _table(head: list[str], lines: list[list[str]]) -> str:
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="card scroll"><table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>'


def _write(value: float, kind: str) -> str:
    if not np.isfinite(value):
        return "–"
    return {"share": percent(value), "count": f"{value:,.0f}", "real": f"{value:.4g}", "signed": f"{value:+.3f}"}[kind]
