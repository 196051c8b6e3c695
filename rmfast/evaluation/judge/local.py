"""A judge that runs here: a causal language model of any architecture that transformers generates with."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.utils import logging

from rmfast.data.example import BadRow
from rmfast.data.template import render
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError, first_line
from rmfast.evaluation.judge.backend import Answer, Failure, Request, Sampling
from rmfast.models.config import context_window
from rmfast.models.folder import refuse_adapter
from rmfast.models.gguf import READ, gguf_architecture, gguf_file, load_gguf_language_model

PLAIN_END = "\n\nAnswer:\n"  # after the question, where a model has no chat template


class Local:
    """A backend (see `rmfast.evaluation.judge.backend`).

    Questions run in left-padded batches of like length, the longest first. A sample depends on the question's key and
    the seed alone, never on the batch: greedy answers and samples change by rounding only.

    Args:
        path: a Hugging Face folder, a .gguf file or a folder with one.
        tokens_per_batch: padded questions and answers together; a longer question runs alone.
        chat_template: jinja file or text, in place of the tokenizer's. Without either, questions are plain text.
        template_date: YYYY-MM-DD, given to a template that reads the clock.

    Raises:
        UserError: no causal language model there.
    """

    def __init__(
        self,
        path: str | Path,
        sampling: Sampling,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        tokens_per_batch: int = 16384,
        chat_template: str | None = None,
        template_date: str | None = None,
    ) -> None:
        self.path, self.sampling, self.seed, self.tokens_per_batch = Path(path), sampling, seed, tokens_per_batch
        refuse_adapter(self.path)
        self.tokenizer = load_tokenizer(path, chat_template, template_date)
        self.model = _load_model(self.path, dtype).to(device).eval().requires_grad_(False)
        stop = self.model.generation_config.eos_token_id
        self._stops = sorted({self.tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])} - {None})
        # The model's settings (penalties, top-p) are not the judge's.
        self.model.generation_config = GenerationConfig()
        self._config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            eos_token_id=self._stops,
            pad_token_id=self._stops[0],
            bos_token_id=self.tokenizer.bos_token_id,
        )

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> dict[str, Any]:
        """Of the weights and not of their place: a folder may move, or be trained on."""
        identity = {
            "model": _fingerprint(self.model),
            "template": self.tokenizer.chat_template,
            "dtype": str(self.model.dtype),
            "temperature": self.sampling.temperature,
            "max_tokens": self.sampling.max_tokens,
        }
        return identity | ({"seed": self.seed} if self.sampling.temperature else {})

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer | Failure]]:
        texts: dict[Request, str] = {}
        for request in requests:
            try:
                texts[request] = self._text(request.prompt)
            except BadRow as bad:
                yield request, Failure(bad.cause, bad.detail)
        requests = list(texts)
        plain = self.tokenizer.chat_template is None  # a template writes its special tokens itself
        ids = self.tokenizer(list(texts.values()), add_special_tokens=plain)["input_ids"] if texts else []
        most = context_window(self.model.config, switches=True)
        fits = []
        for number, tokens in enumerate(ids):
            if most is not None and len(tokens) + self.sampling.max_tokens > most:
                room = f"{len(tokens):,} tokens and {self.sampling.max_tokens:,} to write, the model takes {most:,}"
                yield requests[number], Failure("too long", room)
            else:
                fits.append(number)
        fits.sort(key=lambda number: -len(ids[number]))  # the longest first: what does not fit in memory fails early
        while fits:
            rows = max(1, self.tokens_per_batch // (len(ids[fits[0]]) + self.sampling.max_tokens))
            batch, fits = fits[:rows], fits[rows:]
            answers = self._generate([ids[n] for n in batch], [requests[n].key for n in batch])
            yield from zip((requests[n] for n in batch), answers, strict=True)

    def _text(self, prompt: str) -> str:
        if self.tokenizer.chat_template is None:
            return prompt + PLAIN_END
        return render(self.tokenizer, [{"role": "user", "content": prompt}], is_prompt=True)

    @torch.inference_mode()
    def _generate(self, ids: Sequence[list[int]], keys: Sequence[str]) -> list[Answer]:
        width, device = max(map(len, ids)), self.model.device
        padded = torch.tensor([[self._stops[0]] * (width - len(prompt)) + prompt for prompt in ids], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in ids], device=device)
        processors = LogitsProcessorList()
        if self.sampling.temperature:
            processors.append(_Gumbel(self.sampling.temperature, [self._seed(key) for key in keys], device))
        out = self.model.generate(
            padded, attention_mask=mask, generation_config=self._config, logits_processor=processors
        )
        return [
            self._answer(written, len(prompt)) for written, prompt in zip(out[:, width:].tolist(), ids, strict=True)
        ]

    def _answer(self, written: list[int], prompt_tokens: int) -> Answer:
        end = next((place for place, token in enumerate(written) if token in self._stops), None)
        text = str(self.tokenizer.decode(written[:end], skip_special_tokens=True))
        finish, count = ("length", len(written)) if end is None else ("stop", end + 1)
        return Answer(text, finish, prompt_tokens, count)

    def _seed(self, key: str) -> int:
        return int(hashlib.sha256(f"{self.seed} {key}".encode()).hexdigest()[:15], 16)


class _Gumbel(LogitsProcessor):
    """Makes the largest score a sample of softmax(scores / temperature), with one generator for each row.

    argmax(x / T + g) with g Gumbel noise is a draw of softmax(x / T) (Gumbel, 1954; Maddison et al., 2014). torch's
    sampling takes all rows from one generator, so that an answer would depend on its batch.
    """

    def __init__(self, temperature: float, seeds: Sequence[int], device: torch.device) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log()


def _fingerprint(model: torch.nn.Module) -> str:
    """Of the first values of every parameter: training changes them all, and reading them all would take minutes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _load_model(path: Path, dtype: torch.dtype) -> Any:
    logging.disable_progress_bar()
    gguf = gguf_file(path)
    if gguf is not None and gguf_architecture(gguf) in READ:
        return load_gguf_language_model(gguf, dtype)
    folder, options = (gguf.parent, {"gguf_file": gguf.name}) if gguf else (path, {})
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, **options)
    except Exception as error:  # every library below raises its kinds
        raise UserError(f"--judge {path}: no causal language model can be loaded: {first_line(error)}") from error
