"""How the reward models of PPO read answers, and the prompts' texts for those that have another tokenizer."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rmfast.config import Config
from rmfast.data.columns import read_columns
from rmfast.data.example import BadRow, Example
from rmfast.data.open_end import leaves_open
from rmfast.data.row_kinds import PROMPTS
from rmfast.data.rows import read_row
from rmfast.data.sources import read_rows
from rmfast.data.table import GroupTable
from rmfast.data.tail import template_tail
from rmfast.data.tokenizer import load_tokenizer, same_ids
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reader import TOO_LONG, Reader
from rmfast.tasks.build.inputs import Inputs
from rmfast.trainer.ppo.models import Models
from rmfast.trainer.ppo.reading import ById, ByText
from rmfast.trainer.ppo.scorer import Scorer


def reader_of(
    key: str, path: Path, inputs: Inputs, ends: Collection[int], *, window: int | None, vocabulary: int
) -> ById | ByText:
    """How the reward model of a folder reads answers: by id where its tokenizer gives every text the policy's ids, and
    its template, if it has one, writes what the policy's does; as text elsewhere.

    Args:
        ends: ids that end an answer.
        window: tokens that it takes; None for any number. vocabulary: ids that its embedding has.

    Raises:
        UserError: it has no template for messages, or one that would close answers that are cut.
    """
    policy, tokenizer = inputs.tokenizer, load_tokenizer(path)
    tables = (inputs.table, *inputs.evals.values())
    has_messages = any(store.meta["has_messages"] for table in tables for store in table.stores)
    if same_ids(tokenizer, policy) and not (has_messages and _other_template(tokenizer, policy)):
        return ById(policy, template_tail(policy, ends))
    if has_messages and tokenizer.chat_template is None:
        raise UserError(
            f"{key}: {path} has another tokenizer than the policy and no chat template, and the prompts are messages; "
            "put one into its folder (chat_template.jinja)"
        )
    if has_messages and not leaves_open(tokenizer):
        raise UserError(
            f"{key}: {path} has another tokenizer or chat template than the policy, and its template cannot write an "
            "answer that was cut without an end; give it one that writes answers as they are"
        )
    return ByText(str(path), policy, tokenizer, window, vocabulary)


def _other_template(tokenizer: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase) -> bool:
    return tokenizer.chat_template is not None and tokenizer.chat_template != policy.chat_template


def prompt_texts(config: Config, inputs: Inputs, models: Models) -> tuple[list[Example], list[Example]]:
    """The prompts and the held-out prompts as their rows have them; none where no reward model reads texts.

    Raises:
        UserError: a prompt that such a reward model cannot read, or of which it would not see all answers whole.
    """
    ppo, gold = config.ppo, [] if models.gold is None else [models.gold]
    scorers = [("ppo.reward", one) for one in models.reward.scorers] + [("ppo.gold", one) for one in gold]
    readers = [(key, one.read) for key, one in scorers if isinstance(one.read, ByText)]
    if not readers:
        return [], []
    texts, held_out = table_prompts(config, ppo.prompts, "train", inputs.table), _held_out(config, inputs)
    for key, read in readers:
        _check(key, read, [*texts, *held_out], ppo.max_new_tokens)
    return [example for _, example in texts], [example for _, example in held_out]


def held_out_texts(config: Config, inputs: Inputs, scorer: Scorer) -> list[Example]:
    """The held-out prompts alone, for one reward model; see `prompt_texts`."""
    if not isinstance(scorer.read, ByText):
        return []
    held_out = _held_out(config, inputs)
    _check("ppo.gold", scorer.read, held_out, config.ppo.max_new_tokens)
    return [example for _, example in held_out]


def _held_out(config: Config, inputs: Inputs) -> list[tuple[str, Example]]:
    sources = config.ppo.eval_prompts
    return [one for table in inputs.evals.values() for one in table_prompts(config, sources, "test", table)]


def table_prompts(config: Config, sources: Sequence[str], split: str, table: GroupTable) -> list[tuple[str, Example]]:
    """Each prompt of a table with its place in a file, read once more: tables hold tokens alone."""
    columns, wanted = read_columns(config.data.columns), [table.label(row) for row in range(len(table))]
    found: dict[str, Example] = {}
    for source in sources:
        needed = set(wanted) - found.keys()
        for file, number, row in read_rows(source, split):
            if (label := f"{file}:{number}") in needed:
                found[label] = _as_text(read_row(label, row, columns, PROMPTS))
    return [(label, found[label]) for label in wanted]


def _as_text(example: Example) -> Example:
    """A prompt of token ids by the text beside them."""
    text = next(iter(example.texts), None)
    return example if text is None else replace(example, prompt=text, texts=())


def _check(key: str, read: ByText, prompts: Sequence[tuple[str, Example]], answer: int) -> None:
    """Refuse a prompt that a reward model cannot read with an answer of so many tokens behind it."""
    for label, example in prompts:
        if example.has_ids:
            raise UserError(
                f"{label}: a prompt of token ids without its text, and {key} {read.name} has another tokenizer than "
                "the policy and reads texts; give text or messages"
            )
    encoded = Reader(read.tokenizer, read.window, answer).read([example for _, example in prompts])
    for (label, _), one in zip(prompts, encoded, strict=True):
        if isinstance(one, BadRow):
            room = f" (ppo.max_new_tokens {answer})" if one.cause == TOO_LONG else ""
            raise UserError(f"{label}: {key} {read.name} cannot read this prompt: {one}{room}")
