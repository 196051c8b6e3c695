"""rmfast data report: what a source holds."""

import tempfile
from argparse import Namespace
from typing import Any

from rmfast.commands.words import columns_of
from rmfast.console import say
from rmfast.data.report import data_report
from rmfast.data.row_kinds import PAIRS, PROMPTS, RowKind, demonstrations, samples
from rmfast.data.store import build_store
from rmfast.data.tokenizer import byte_tokenizer, load_tokenizer
from rmfast.errors import UserError


def report(options: Namespace) -> None:
    """rmfast data report"""
    tokenizer = byte_tokenizer()
    if options.model:
        from rmfast.tasks.build.model import say_date  # with torch, which nothing else here needs

        tokenizer = load_tokenizer(options.model, options.chat_template, options.template_date)
        say_date(options.model, tokenizer)
    elif unread := [name for name in ("chat_template", "template_date") if getattr(options, name)]:
        raise UserError(f"--{unread[0].replace('_', '-')} is for the tokenizer of --model, and there is none")
    how: dict[str, Any] = {"kind": _kind(options), "columns": columns_of(options)}
    with tempfile.TemporaryDirectory() as cache:
        stores = [build_store(source, tokenizer, cache, **how) for source in options.sources]
        if not options.model:
            say("Lengths are in bytes; --model PATH counts that model's tokens.")
        say(data_report(stores, options.max_length))


def _kind(options: Namespace) -> RowKind:
    """As what the rows are read."""
    if options.prompts:
        return PROMPTS
    if options.demonstrations:
        return demonstrations(options.demonstrations)
    return samples(options.samples) if options.samples else PAIRS
