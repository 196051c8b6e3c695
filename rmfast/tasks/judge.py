"""The judge that the flags of `rmfast eval` ask for."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rmfast.data.clock import fixed_date
from rmfast.errors import UserError

if TYPE_CHECKING:
    from rmfast.evaluation.judge.backend import Backend, Sampling
    from rmfast.evaluation.judge.local import Local
    from rmfast.evaluation.judge.plan import JudgeOptions
    from rmfast.evaluation.judge.run import Judged
    from rmfast.evaluation.suites.base import Item

KEYS = ("RMFAST_JUDGE_KEY", "OPENAI_API_KEY")  # variables of the environment, the first that is set
PLACEHOLDER = "none"  # servers of one's own want a key of any kind


@dataclass(frozen=True)
class Judge:
    """A judge that is ready to be asked. `log` keeps its answers; `template_date` is what its chat template is given if
    that one reads the clock and runs here."""

    backend: "Backend"
    options: "JudgeOptions"
    log: Path | None
    template_date: str | None = None

    def __call__(self, items: "Sequence[Item]", say: Callable[[str], None]) -> "Judged":
        from rmfast.evaluation.judge.run import judge_items

        return judge_items(items, self.backend, self.options, self.log, say)


def add_flags(command: ArgumentParser) -> None:
    """The flags that `make_judge` reads, beside those of every command that scores, and --out."""
    judge = command.add_argument_group("generative judges", "a language model that says which answer is better")
    judge.add_argument("--judge", metavar="DIR", help="a causal language model: Hugging Face folder or GGUF")
    judge.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server, as http://localhost:8000/v1")
    judge.add_argument("--judge-model", metavar="NAME", help="the model's name at --endpoint")
    judge.add_argument("--criteria", default="none", metavar="none|builtin|FILE", help="what makes an answer better")
    judge.add_argument("--reasoning", action="store_true", default=True, help="compare in words first (default)")
    judge.add_argument("--no-reasoning", action="store_false", dest="reasoning", help="a verdict and nothing else")
    judge.add_argument("--orders", choices=["both", "one"], default="both", help="each vote in both orders of answers")
    judge.add_argument("--votes", type=_count, default=1, metavar="K", help="samples; the majority decides (1)")
    judge.add_argument("--temperature", type=_number, help="default: 0 for one vote, 1 for more")
    judge.add_argument("--max-tokens", type=_count, help="of an answer (default: 1024, 64 without reasoning)")
    judge.add_argument("--allow-ties", action="store_true", help="the judge may say that neither is better; ties lose")
    judge.add_argument("--concurrency", type=_count, default=8, metavar="N", help="requests at once (8)")
    judge.add_argument("--timeout", type=_positive, default=120.0, metavar="SECONDS", help="of a request (120)")
    judge.add_argument("--retries", type=_count_or_0, default=5, metavar="N", help="of a request that failed (5)")
    judge.add_argument("--requests-per-minute", type=_positive, metavar="N", help="default: no limit")
    judge.add_argument(
        "--judge-log",
        metavar="FILE.jsonl",
        help="keeps every answer, and a run goes on from it (default: beside --out)",
    )
    judge.add_argument("--seed", type=_count_or_0, default=0, help="of orders and of a local judge's samples")


def wants_judge(options: Namespace) -> bool:
    """Whether the flags name a judge."""
    return options.judge is not None or options.endpoint is not None


def make_judge(options: Namespace) -> Judge:
    """The judge of the flags; a local one is loaded.

    Raises:
        UserError: flags that do not fit together, no model there, `openai` not installed, no place for the log.
    """
    from rmfast.evaluation.judge.backend import Sampling
    from rmfast.evaluation.judge.plan import JudgeOptions

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
    if name == "none":
        return None
    if name == "builtin":
        return name
    try:
        text = Path(name).read_text(encoding="utf-8").strip()
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
        raise UserError(f"--judge-log {path}: is a folder, or lies in one that does not exist; name a file")
    return path


def _endpoint(options: Namespace, sampling: "Sampling") -> "Backend":
    url = options.endpoint.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError:
        whole = False
    if not whole or parts.username or parts.password or parts.query or parts.fragment:
        # The address itself is not shown: it may hold a key.
        raise UserError("--endpoint: want http://HOST:PORT/v1 or https://HOST/v1, without a user, key or query in it")
    name, key = next(((name, key) for name in KEYS if (key := os.environ.get(name, "").strip())), ("", PLACEHOLDER))
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{name} holds characters that no key has; set it to the key alone")
    try:
        from rmfast.evaluation.judge.endpoint import Endpoint
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise UserError("--endpoint needs the package openai: pip install 'rmfast[judge]'") from None
    return Endpoint(
        url,
        options.judge_model,
        sampling,
        key=key,
        concurrency=options.concurrency,
        timeout=options.timeout,
        retries=options.retries,
        requests_per_minute=options.requests_per_minute,
    )


def _local(options: Namespace, sampling: "Sampling") -> "Local":
    import torch

    from rmfast.evaluation.judge.local import Local
    from rmfast.models.config import DTYPES
    from rmfast.tasks.options import say_date

    local = Local(
        options.judge,
        sampling,
        seed=options.seed,
        device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=DTYPES[options.dtype],
        tokens_per_batch=options.tokens_per_pack,
        chat_template=options.chat_template,
        template_date=options.template_date,
    )
    say_date(options.judge, local.tokenizer)
    return local


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _positive(text: str) -> float:
    if (value := _number(text)) == 0:
        raise ValueError(text)
    return value


def _count_or_0(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    if (value := _count_or_0(text)) == 0:
        raise ValueError(text)
    return value
