"""One self-contained page about a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rmfast.data.files import write_text
from rmfast.report.policy.outcome import trains_policy
from rmfast.report.policy.page import policy_page
from rmfast.report.policy.plots import policy_plots
from rmfast.report.run_folder import Run, Scores, last_rows, read_run
from rmfast.report.run_plots import all_plots
from rmfast.report.template import metric_table, page, write, write_picture

WORST = 10  # rows of the table of mistakes

# Rows of the table of final metrics: key, what it says, how it is written.
METRICS = (
    ("accuracy", "Accuracy (pairs ranked right)", "share"),
    ("loss", "Loss (nats)", "real"),
    ("perplexity", "Perplexity", "real"),
    ("perplexity_low", "Perplexity, 95 % interval from", "real"),
    ("perplexity_high", "Perplexity, 95 % interval to", "real"),
    ("mean_token_accuracy", "Targets that are the likeliest token", "share"),
    ("entropy", "Entropy (nats)", "real"),
    ("rows", "Demonstrations", "count"),
    ("tokens", "Targets", "count"),
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
    ("rows_per_second", "Demonstrations per second", "real"),
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
    found = policy_plots(run) if trains_policy(run) else all_plots(run)
    plots = {folder / f"{plot.name}.png": plot for plot in found}
    text = report_page(run, [write_picture(plot, file) for file, plot in plots.items()])
    write_text(folder / "report.html", text)
    return [*plots, folder / "report.html"]


def report_page(run: Run, pictures: Sequence[Mapping[str, str]]) -> str:
    """The page's HTML; pictures are those of `write_picture`."""
    if trains_policy(run):
        return policy_page(run, pictures)
    columns, metrics = metric_table(last_rows(run), METRICS)
    return page(
        "run.html",
        title=run.path.resolve().name,
        run=run,
        notes=run.notes,
        plots=pictures,
        columns=columns,
        metrics=metrics,
        mistakes={name: _mistakes(scores) for name, scores in run.finals.items()},
    )


def _mistakes(scores: Scores) -> list[list[str]]:
    """The held-out rows that the final model gets most confidently wrong: label, margin, rewards, lengths."""
    margin = scores.scores[scores.better] - scores.scores[scores.worse]
    # Broken scores first, then the most negative margin.
    order = np.argsort(np.where(np.isfinite(margin), margin, -np.inf), kind="stable")
    worst: dict[str, int] = {}
    for edge in order:
        if len(worst) == WORST or margin[edge] > 0:
            break
        worst.setdefault(str(scores.labels[scores.better[edge]]), int(edge))
    lines = []
    for label, edge in worst.items():
        ends = (int(scores.better[edge]), int(scores.worse[edge]))
        rewards = [write(float(scores.scores[end]), "signed") for end in ends]
        lengths = " / ".join(write(float(scores.lengths[end]), "count") for end in ends)
        lines.append([label, write(float(margin[edge]), "signed"), *rewards, lengths])
    return lines
