"""Small real tokenizers: byte-level BPE, trained on a few lines, with every habit that real ones have."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "The capital of France is Paris.",
    "the cat sat on the mat and the dog ran",
    "hello world, how are you today?",
] * 4
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Like Llama 2's: bos from the template, eos after the answer, turns that must alternate, no generation prompt.
ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[' + m['role'] + '] ' + m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Args: add_bos, add_eos (by the tokenizer itself), pad_is_eos, template; bos and eos ids are 0 and 1."""

    def make(
        add_bos: bool = False, add_eos: bool = False, pad_is_eos: bool = False, template: str | None = CHATML
    ) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        special = ["<s>", "<|im_end|>", "<pad>", "<|im_start|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(LINES, trainer)
        if add_bos or add_eos:
            single = " ".join((["<s>"] if add_bos else []) + ["$A"] + (["<|im_end|>"] if add_eos else []))
            backend.post_processor = processors.TemplateProcessing(
                single=single, special_tokens=[("<s>", 0), ("<|im_end|>", 1)]
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<s>",
            eos_token="<|im_end|>",
            pad_token="<|im_end|>" if pad_is_eos else "<pad>",
        )
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer()
