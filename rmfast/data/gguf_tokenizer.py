"""How a byte-level tokenizer of a GGUF file splits texts before it merges bytes.

The file says so by a name (`tokenizer.ggml.pre`). transformers splits as GPT-2 does for every name that it does not
know, older versions for more of them, and tokens would differ silently. llama.cpp defines what each name means:
src/llama-vocab.cpp (names, `ignore_merges`) and its `regex_exprs`.
"""

from pathlib import Path

import transformers
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from rmfast.data.word_splits import SPLITS
from rmfast.errors import UserError
from rmfast.gguf_file import open_gguf

_ALIKE = {
    "llama3": ("llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "falcon-h1", "lfm2"),
    "qwen2": ("deepseek-r1-qwen", "kormo", "megrez", "f2llmv2"),
    "gpt-4o": ("llama4", "kanana2", "minimax-m2"),
    "gpt-2": ("phi-2", "gigachat", "a.x-4.0", "mellum"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell"),
}
_WHOLE_WORDS = ("llama3", "tekken")
"""Words of the vocabulary are taken whole, though their bytes may merge into others."""
_COMPOSED = ("qwen2", "command-r")
"""Names of files that llama.cpp makes of tokenizers which first compose characters (NFC); the file does not say so."""

_INSTEAD = (
    "put the tokenizer.json and tokenizer_config.json of the model's Hugging Face folder into a folder with this file "
    "alone, and give that folder"
)
READS_GGUF = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 18)
"""transformers reads tokenizers of GGUF files: 5.17 fails at those without a bos token, and takes it for the eos."""


def check_reader(path: Path) -> None:
    """Refuse the tokenizer of a GGUF file where transformers cannot read it.

    Raises:
        UserError: the version that can.
    """
    if not READS_GGUF:
        raise UserError(
            f"cannot load a tokenizer from {path}: transformers {transformers.__version__} reads no tokenizer of a "
            f"GGUF file rightly: install transformers 5.18 or later, or {_INSTEAD}"
        )


def set_splits(backend: Tokenizer, path: Path) -> None:
    """Let the tokenizer of a GGUF file split texts as the file says; one that is not of bytes stays as it is.

    Raises:
        UserError: the file names no way of splitting, or one that rmfast does not know.
    """
    keys = open_gguf(path).keys
    if keys.get("tokenizer.ggml.model") != "gpt2":
        return
    name = keys.get("tokenizer.ggml.pre")
    way = next((way for way, names in _ALIKE.items() if name in names), name)
    steps: list[pre_tokenizers.PreTokenizer] = []
    if way in SPLITS:
        steps.append(pre_tokenizers.Split(Regex(SPLITS[way]), behavior="isolated"))
    elif way == "smollm":
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    elif way != "gpt-2":
        raise UserError(
            f"{path}: its tokenizer splits texts in a way that rmfast does not know (tokenizer.ggml.pre = {name!r}), "
            f"and its tokens would not be the model's: {_INSTEAD}"
        )
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=way not in SPLITS))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if name in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    if way in _WHOLE_WORDS and isinstance(backend.model, BPE):
        backend.model.ignore_merges = True
