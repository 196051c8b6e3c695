"""The page of a run that trained a policy: what it did in words, plots, figures, and answers to read."""

from collections.abc import Mapping, Sequence

from rmfast.report.policy.collapse import Collapse, find_collapse, signs
from rmfast.report.policy.outcome import as_evaluated, outcome, reward_line, verdicts
from rmfast.report.policy.samples import read_pairs, read_samples
from rmfast.report.run_folder import Run, last_rows, number
from rmfast.report.template import metric_table, page, write

# Rows of the table of final metrics, as in rmfast.report.html.
METRICS = (
    ("reward", "Reward", "real"),
    ("gold", "Reward of the model that never trained (gold)", "real"),
    ("kl", "KL of an answer to the reference (nats)", "real"),
    ("length", "Length of an answer (tokens)", "real"),
    ("objective/rlhf_reward", "Reward less KL", "real"),
    ("kl_per_token", "KL of a token (nats)", "real"),
    ("kl_coefficient", "KL coefficient", "real"),
    ("entropy", "Entropy of a token (nats)", "real"),
    ("perplexity", "Perplexity of the answers", "real"),
    ("objective/scores_std", "Standard deviation of rewards", "real"),
    ("disagreement", "Disagreement of the members (std)", "real"),
    ("agreement", "Agreement of the members on pairs", "share"),
    ("cut_share", "Answers that were cut", "share"),
    ("cut_value", "Value added to the score of a cut answer", "real"),
    ("flat_group_share", "Prompts whose answers all scored alike", "share"),
    ("policy/clipfrac_avg", "Clipped tokens, policy", "share"),
    ("val/clipfrac_avg", "Clipped tokens, value", "share"),
    ("first_ratio_gap", "Largest distance of the first ratio from 1", "real"),
    ("sampler_gap", "Mean gap to the sampler's log-probability (nats)", "real"),
    ("kept_mass", "Probability that the filters kept", "share"),
    ("loss/policy_avg", "Policy loss", "real"),
    ("loss/value_avg", "Value loss", "real"),
    ("explained_variance", "Explained variance of returns", "share"),
    ("sampling_share", "Sampling's share of the time", "share"),
    ("lr", "Learning rate", "real"),
    ("episode", "Answers drawn", "count"),
    ("optim_steps", "Optimizer steps", "count"),
    ("num_tokens", "Tokens seen", "count"),
    ("tokens_per_second", "Tokens per second", "count"),
    ("memory_gib", "Memory (GiB)", "real"),
)


def policy_page(run: Run, pictures: Sequence[Mapping[str, str]]) -> str:
    """The page's HTML; pictures are those of `write_picture`."""
    columns, metrics = metric_table({name: as_evaluated(row) for name, row in last_rows(run).items()}, METRICS)
    notes = list(run.notes)
    samples = read_samples(run.path, notes)
    collapse = find_collapse(run)
    found = outcome(run)
    return page(
        "policy.html",
        title=run.path.resolve().name,
        run=run,
        notes=notes,
        plots=pictures,
        columns=columns,
        metrics=metrics,
        found=found,
        reward="" if found is None else reward_line(found),
        verdicts=[] if found is None else verdicts(found),
        samples=samples,
        collapse=collapse,
        signs=[] if collapse is None else _signs(run, collapse),
        fallen=[] if collapse is None else read_pairs(run.path, (collapse.began, number(collapse.last, "step")), notes),
    )


def _signs(run: Run, collapse: Collapse) -> list[list[str]]:
    """Lines of the table of signs."""
    return [
        [words, does, *(write(value, "real") for value in values)]
        for words, does, *values in signs(run, collapse.began)
    ]
