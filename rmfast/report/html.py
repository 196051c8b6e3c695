"""One self-contained page about a run: no script, no network, dark and light, readable on a phone."""

from html import escape
from pathlib import Path

import numpy as np

from rmfast.report.page import document, figure, table, write
from rmfast.report.plots import DARK, all_plots, render
from rmfast.report.run_folder import Row, Run, Scores, number, read_run
from rmfast.report.summary import accuracy_line, baseline, percent, verdict

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
        figures.append(figure(plot.title, plot.note, light, render(plot, DARK)))
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
    return document(name, parts)


def _headline(run: Run) -> str:
    """Held-out accuracy against the baseline, a card for each held-out set, and the run's size in a line."""
    cards = []
    for name, rows in run.evals.items():
        last = rows[-1]
        if last.get("headline"):
            cards.append(_suite_card(name, last))
            continue
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
        items = [f"<li><b>{write(number(last, key), kind)}</b> {unit}</li>" for key, unit, kind in facts]
        cards.append(f'<ul class="facts">{"".join(items)}</ul>')
    return "\n".join(cards)


def _suite_card(name: str, last: Row) -> str:
    """A benchmark by the figures that it is quoted by, the first one large."""
    first, *others = last["headline"]
    shares = {figure: percent(number(last["headline"], figure)) for figure in (first, *others)}
    items = "".join(f"<li>{escape(figure)} <b>{shares[figure]}</b></li>" for figure in others)
    return (
        f'<div class="card good"><p class="soft">{escape(name)}: {escape(first)}, step {number(last, "step"):,.0f}</p>'
        f'<p class="big">{shares[first]}</p><ul class="facts">{items}</ul></div>'
    )


def _metrics_table(run: Run) -> str:
    """Last values of training and of each held-out set; rows that nobody knows are left out."""
    columns = [(f"held out: {name}", rows[-1]) for name, rows in run.evals.items()]
    columns += [("train, last step", run.train[-1])] if run.train else []
    lines = []
    for key, label, kind in METRICS:
        values = [number(row, key) for _, row in columns]
        if np.isfinite(values).any():
            lines.append([label, *(write(value, kind) for value in values)])
    if not lines:
        return ""
    return "<h2>Final metrics</h2>" + table(["", *(name for name, _ in columns)], lines)


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
        rewards = [write(float(scores.scores[end]), "signed") for end in ends]
        lengths = " / ".join(write(float(scores.lengths[end]), "count") for end in ends)
        lines.append([label, write(float(margin[edge]), "signed"), *rewards, lengths])
    head = ["Row", "Margin", "Reward, better", "Reward, worse", "Tokens, better / worse"]
    intro = "<p class='soft'>The rows where the model prefers the worse reply most: hard pairs, or wrong labels.</p>"
    return f"<h2>Most confidently wrong on {escape(name)}</h2>{intro}{table(head, lines)}"


def _notes(run: Run) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return f'<h2>Missing from this report</h2><ul class="soft">{items}</ul>' if items else ""


def _config(run: Run) -> str:
    if run.config is None:
        return ""
    return (
        f'<h2>Config</h2><details class="card"><summary>config.yaml</summary><pre>{escape(run.config)}</pre></details>'
    )
