"""The judge that the flags of `rmfast eval` ask for."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rmfast.commands.flags import device_of
from rmfast.data.clock import fixed_date
from rmfast.errors import UserError
from rmfast.evaluation.judge.backend import Backend, Sampling
from rmfast.evaluation.judge.connect import connect
from rmfast.evaluation.judge.local import Local
from rmfast.evaluation.judge.plan import JudgeOptions
from rmfast.evaluation.judge.run import Judged, judge_items
from rmfast.evaluation.suites.base import Item
from rmfast.models.config import DTYPES
from rmfast.paths import whole_text
from rmfast.tasks.build.model import say_date


@dataclass(frozen=True)
class Judge:
    """A judge that is ready to be asked.

    Attributes:
        log: file that keeps its answers. template_date: given to a local judge's chat template that reads the clock.
    """

    backend: Backend
    options: JudgeOptions
    log: Path | None
    template_date: str | None = None

    def __call__(self, items: Sequence[Item], say: Callable[[str], None]) -> Judged:
        return judge_items(items, self.backend, self.options, self.log, say)


def wants_judge(options: Namespace) -> bool:
    """Whether the flags name a judge."""
    return options.judge is not None or options.endpoint is not None


def make_judge(options: Namespace) -> Judge:
    """The judge of the flags; a local one is loaded.

    Raises:
        UserError: flags that do not fit together, no model there, `openai` not installed, no place for the log.
    """
    if (options.judge is None) == (options.endpoint is None):
        raise UserError("name one judge: --judge DIR for a local model, or --endpoint URL with --judge-model NAME")
    if (options.endpoint is None) != (options.judge_model is None):
        raise UserError("--endpoint URL and --judge-model NAME go together")
    if options.temperature == 0 and options.votes > 1:
        raise UserError(f"--votes {options.votes} at --temperature 0 asks the same thing again; give one above 0")
    temperature = float(options.votes > 1) if options.temperature is None else options.temperature
    sampling = Sampling(temperature, options.max_tokens or (1024 if options.reasoning else 64))
    judge_options = JudgeOptions(
        criteria=_criteria(options.criteria),
        reasoning=options.reasoning,
        orders=options.orders,
        votes=options.votes,
        ties=options.allow_ties,
        seed=options.seed,
    )
    log = judge_log(options)
    if options.endpoint:
        return Judge(_endpoint(options, sampling), judge_options, log)
    local = _local(options, sampling)
    return Judge(local, judge_options, log, fixed_date(local.tokenizer.chat_template))


def _criteria(name: str) -> str | None:
    """None, "builtin", or the text of a file."""
    if name in ("none", "builtin"):
        return None if name == "none" else name
    try:
        text = whole_text(name).strip()
    except OSError as error:
        raise UserError(f"--criteria {name}: neither none, builtin nor a file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--criteria {name}: is not UTF-8 text") from None
    if not text:
        raise UserError(f"--criteria {name}: the file is empty")
    return text


def judge_log(options: Namespace) -> Path | None:
    """The file of --judge-log; without it, a file beside --out: answers cost time or money, and a run may die."""
    out = getattr(options, "out", None)
    name = options.judge_log or (f"{Path(out).with_suffix('')}.judge.jsonl" if out else None)
    if name is None:
        return None
    path = Path(name)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--judge-log {path}: is a folder, or is in one that does not exist; name a file")
    return path


def _endpoint(options: Namespace, sampling: Sampling) -> Backend:
    limits = {name: getattr(options, name) for name in ("concurrency", "timeout", "retries", "requests_per_minute")}
    return connect("--endpoint", options.endpoint, options.judge_model, sampling, **limits)


def _local(options: Namespace, sampling: Sampling) -> Local:
    local = Local(
        options.judge,
        sampling,
        seed=options.seed,
        device=device_of(options),
        dtype=DTYPES[options.dtype],
        tokens_per_batch=options.tokens_per_pack,
        chat_template=options.chat_template,
        template_date=options.template_date,
    )
    say_date(options.judge, local.tokenizer)
    return local
