"""A language model as a library: load it, draw samples, take log-probabilities."""

import hashlib
import json
import operator
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rmfast.checkpoint.network import load_checkpoint
from rmfast.checkpoint.store import MANIFEST
from rmfast.data.example import BadRow, Example
from rmfast.data.prompt_rows import CUT
from rmfast.data.row_kinds import PROMPTS, RESPONSES, RowKind
from rmfast.data.rows import read_row
from rmfast.data.store import store_examples
from rmfast.data.table import build_table
from rmfast.data.tokenise import Encoded, encode
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reader import too_long
from rmfast.evaluation.scoring.reward_model import model_folder
from rmfast.models.config import context_window
from rmfast.models.hf import load_network
from rmfast.models.network import Network
from rmfast.models.peft import chain
from rmfast.models.placement import check_device, check_dtype
from rmfast.rollout.decoding import network_decoding
from rmfast.rollout.draft import Draft, Request
from rmfast.rollout.free_memory import free_memory
from rmfast.rollout.log_prob import table_log_probs
from rmfast.rollout.options import SampleOptions, StopReason
from rmfast.rollout.sampler import Sampler
from rmfast.rollout.stops import Stops, StopStrings, cut, draft_text


@dataclass(frozen=True)
class Sample:
    """A sample of a prompt.

    Attributes:
        text: without special tokens and the stop string.
        token_ids: with the eos or the tokens of the stop string.
        log_prob: of each token, natural logs under the model at temperature 1, unfiltered.
        behaviour_log_prob: of each token under the distribution that it was drawn from.
    """

    text: str
    token_ids: list[int]
    stop_reason: StopReason
    log_prob: list[float]
    behaviour_log_prob: list[float]


def load_policy(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    chat_template: str | None = None,
    template_date: str | None = None,
    rows: int = 256,
    memory: float | None = None,
    tokens_per_pack: int = 2048,
) -> "Policy":
    """Load a language model.

    Args:
        path: a Hugging Face folder of a `*ForCausalLM` model of a supported family, a GGUF file, a run folder (its
            `model/`), or a checkpoint folder of a run.
        device: where it computes. dtype: of weights and activations; log-probabilities are fp32.
        chat_template: jinja file or text, in place of the tokenizer's.
        template_date: see `rmfast.load`.
        rows: samples that are decoded at once, at most.
        memory: bytes of keys and values, at most; default half of what is free on the device.
        tokens_per_pack: of prompts that are computed at once.

    Raises:
        UserError: nothing there, another architecture, a reward model, no such device or dtype.
    """
    check_device(device)
    check_dtype(dtype)
    path = model_folder(path)
    if (path / MANIFEST).is_file():
        network, hf = load_checkpoint(path, lm=True, dtype=dtype)
    else:
        network, hf = load_network(path, heads=0, lm=True, dtype=dtype, weights_dtype=dtype)
    tokenizer = load_tokenizer(path, chat_template, template_date)
    return Policy(
        network.to(device), hf, tokenizer, ends=end_ids(path, hf, tokenizer), rows=rows, memory=memory,
        tokens_per_pack=tokens_per_pack,
    )  # fmt: skip


def end_ids(path: Path, hf: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end a sample: the tokenizer's eos, the config's, and those of generation_config.json, of which
    nothing else is read; an adapter's folder without that file has its base's. What is no id of the tokenizer's, such
    as -1, ends nothing."""
    adapters, base = chain(path)
    files = (folder / "generation_config.json" for folder in (*(one.path for one in adapters), base))
    file = next((file for file in files if file.is_file()), None)
    found = [tokenizer.eos_token_id, hf.get_text_config().eos_token_id]
    if file is not None:
        try:
            found.append(json.loads(file.read_text(encoding="utf-8")).get("eos_token_id"))
        except (ValueError, AttributeError):
            raise UserError(f"{file}: not a JSON object; mend it, or take it away") from None
    values = [item for value in found for item in (value if isinstance(value, list) else [value])]
    return frozenset(value for value in values if type(value) is int and 0 <= value < len(tokenizer))


class Policy:
    """Draws samples. Make one with `rmfast.load_policy`.

    Attributes:
        network: the model. hf: its Hugging Face config. tokenizer: its tokenizer. ends: ids that end a sample.
        window: tokens of the longest sequence that it takes, None without a limit (see `context_window`).
    """

    def __init__(
        self,
        network: Network,
        hf: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ends: frozenset[int],
        rows: int = 256,
        memory: float | None = None,
        tokens_per_pack: int = 2048,
    ) -> None:
        for name, value in (("rows", rows), ("tokens_per_pack", tokens_per_pack)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.network, self.hf, self.tokenizer, self.ends = network.eval().requires_grad_(False), hf, tokenizer, ends
        self.window, self.rows, self.memory, self.tokens_per_pack = context_window(hf), rows, memory, tokens_per_pack

    def sample(
        self,
        prompts: Sequence[Any],
        n: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[list[Sample]]:
        """n samples of each prompt.

        A prompt alone gives what it gives in company, to rounding; two equal prompts give different samples; the first
        samples of a larger n are those of a smaller.

        Args:
            prompts: each a text (which gets the tokenizer's special tokens, but no eos), messages (the chat template
                with its header of an answer), or token ids.
            max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop: see `SampleOptions`.

        Raises:
            UserError: an option out of range; a prompt that cannot be read or is too long, by its number.
        """
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            raise UserError(f"sample takes a list of prompts, not {type(prompts).__name__}")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise UserError(f"n must be a whole number of at least 1, got {n!r}")
        options = SampleOptions(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
            repetition_penalty=repetition_penalty, seed=seed, stop=stop,
        )  # fmt: skip
        examples = [_read(f"prompt {i}", {"prompt": prompt}, PROMPTS) for i, prompt in enumerate(prompts)]
        for i, example in enumerate(examples):
            if any(note.kind == CUT for note in example.notes):
                raise UserError(f"prompt {i}: ends in an answer; leave out the turns after the last that asks")
        requests = draw_numbers(self.encode(examples))
        samples: list[list[Sample]] = [[] for _ in requests]
        for number, drafts in self.sampler(options).sample(requests, n):
            samples[number] = [self.finish(requests[number], draft, options) for draft in drafts]
        return samples

    def log_prob(self, rows: Sequence[Mapping[str, Any]], eos: bool = True) -> list[list[list[float]]]:
        """Log-probability of each token of each response, under the model at temperature 1, over the tokenizer's ids.

        Prompt and response are joined as by `RewardModel.score`; a figure for each token from the first that differs
        from the tokenised prompt's, but never for a sequence's first token, which nothing predicts.

        Args:
            rows: `{"prompt": str | messages, "responses": [str, ...]}`, or with `response_ids`, lists of token ids that
                follow the prompt's, in place of `responses`: what was sampled.
            eos: whether the eos that is appended to a text without one has its figure.

        Raises:
            UserError: a row that cannot be read or is too long, by its number.
        """
        if isinstance(rows, Mapping | str) or not isinstance(rows, Iterable):
            raise UserError(f"log_prob takes a list of rows, not {type(rows).__name__}")
        rows = list(rows)
        out: list[list[list[float]]] = [[] for _ in rows]
        examples = {i: example for i, row in enumerate(rows) if (example := self._answered(row, i)) is not None}
        if not examples:
            return out
        appended: list[bool] = []
        for i, encoded in zip(examples, encode(self.tokenizer, list(examples.values())), strict=True):
            bad = encoded if isinstance(encoded, BadRow) else too_long(encoded, self.window)
            if isinstance(encoded, BadRow) or bad is not None:
                raise UserError(f"row {i}: {bad}")
            appended += self._appended(examples[i], encoded)
        table = build_table([store_examples(list(examples.values()), self.tokenizer)], kind=RESPONSES)[0]
        ids = min(len(self.tokenizer), self.network.config.vocabulary)
        found = [values.tolist() for values in table_log_probs(self.network, table, ids, self.tokens_per_pack)]
        kept = (values if eos or not extra else values[:-1] for values, extra in zip(found, appended, strict=True))
        for i, example in examples.items():
            out[i] = [next(kept) for _ in example.responses]
        return out

    def _answered(self, row: Any, number: int) -> Example | None:
        """A row's prompt with its responses; None where there are none."""
        if not isinstance(row, Mapping):
            raise UserError(f"row {number}: not a mapping but {type(row).__name__}")
        if "response_ids" not in row:
            return None if row.get("responses") == [] else _read(f"row {number}", dict(row), RESPONSES)
        if "responses" in row:
            raise UserError(f"row {number}: holds responses and response_ids; give one of them")
        try:
            given = [[operator.index(id_) for id_ in ids] for ids in row["response_ids"]]
        except TypeError:  # no list, or not of whole numbers
            given = [[]]
        if not all(given):
            raise UserError(f"row {number}: response_ids must be lists of token ids, none of them empty")
        columns = {name: value for name, value in row.items() if name != "response_ids"}
        (prompt,) = self.encode([_read(f"row {number}", columns, PROMPTS)], number)
        if not given:
            return None
        front = prompt.tolist()
        return Example(None, tuple(front + ids for ids in given), prompt_ids=len(front))

    def _appended(self, example: Example, encoded: Encoded) -> list[bool]:
        """Of each response whether its last token is an eos that its text does not end in."""
        if not example.is_text:
            return [False] * len(encoded.ids)
        texts = [f"{example.prompt or ''}{response}" for response in example.responses]
        given = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [not ids or ids[-1] != self.tokenizer.eos_token_id for ids in given]

    def encode(self, examples: Sequence[Example], first: int = 0) -> list[np.ndarray]:
        """Token ids of prompts.

        Args:
            first: the number of the first.

        Raises:
            UserError: one that cannot be read, by its number.
        """
        ids = []
        for i, encoded in enumerate(encode(self.tokenizer, examples), first):
            if isinstance(encoded, BadRow):
                raise UserError(f"prompt {i}: {encoded}")
            ids.append(encoded.sequences[0])
        return ids

    def sampler(
        self, options: SampleOptions, *, ends: Collection[int] | None = None, stops: Stops | None = None
    ) -> Sampler:
        """What draws by some options.

        Args:
            ends: ids that end a sample; default the policy's. stops: what else does; default the options' texts.
        """
        model = network_decoding(self.network, len(self.tokenizer))
        if stops is None and options.stop:
            stops = StopStrings(self.tokenizer, options.stop)
        memory = free_memory(model.device) / 2 if self.memory is None else self.memory
        return Sampler(
            model, options, ends=self.ends if ends is None else ends, stops=stops, window=self.window, rows=self.rows,
            memory=memory, tokens_per_pack=self.tokens_per_pack,
        )  # fmt: skip

    def finish(self, request: Request, draft: Draft, options: SampleOptions) -> Sample:
        """A sample with its text."""
        text = cut(draft_text(self.tokenizer, request.ids, draft), options.stop)
        columns = (x.tolist() for x in (draft.ids, draft.log_prob, draft.behaviour_log_prob))
        token_ids, log_prob, behaviour = columns
        return Sample(text, token_ids, draft.stop_reason, log_prob, behaviour)


def draw_numbers(prompts: Sequence[np.ndarray]) -> list[Request]:
    """Prompts with the numbers that their draws have: a hash of the ids and of how many equal prompts there are before,
    so that a prompt's samples do not depend on what else is sampled."""
    before: Counter[bytes] = Counter()
    requests = []
    for ids in prompts:
        key = np.asarray(ids, np.int64).tobytes()
        digest = hashlib.blake2b(key, digest_size=8, salt=before[key].to_bytes(8, "little")).digest()
        before[key] += 1
        requests.append(Request(np.asarray(ids, np.int32), int.from_bytes(digest, "little")))
    return requests


def _read(label: str, row: dict[str, Any], kind: RowKind) -> Example:
    arrays = {name: value.tolist() for name, value in row.items() if isinstance(value, np.ndarray | torch.Tensor)}
    try:
        return read_row(label, row | arrays, kind=kind)
    except BadRow as error:
        raise UserError(f"{label}: {error}") from None
