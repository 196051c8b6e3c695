"""How a GGUF file's tokenizer splits texts, against what transformers has for the models that the names are of."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import CodeGenTokenizer, CohereTokenizer, GPT2Tokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from rmfast.data.gguf_tokenizer import READS_GGUF, set_splits
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = {letter: i for i, letter in enumerate([*LETTERS, "<|endoftext|>"])}
TEXTS = [
    "1 12 123 1234567 3.14 ½ ² ٣٤٥ Ⅻ x2y 2nd",
    "It's I'LL we'Ve he'd 's 't don’t O'RE'VE",
    "camelCase HTTPServer aB ABc ÀÉÎõ ǅ ʰa i̇ İstanbul straße",
    "漢字と仮名 한국어 ไทย हिन्दी עברית العربية 👩‍👧🏽 ½",
    "  two   three\t tab \n\n newline\r\n\r\n \n end  ",
    "a/b //c\n/d !!!\n ??\r\n -- (x)[y]{z} $1,234.50 #_*",
    "\u00a0nbsp\u3000wide\u200bzero\u2028line e\u0301 composed é",
    "",
    " ",
    "\n",
]
TABLE_MODULE = "transformers.integrations.gguf.gguf_tokenizer_mapping"


def of_file(monkeypatch: pytest.MonkeyPatch, name: str, **vocabulary: Any) -> Tokenizer:
    """A tokenizer of bytes, set as a file of that name says."""
    keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name}
    monkeypatch.setattr("rmfast.data.gguf_tokenizer.open_gguf", lambda path: SimpleNamespace(keys=keys))
    backend = Tokenizer(BPE(**({"vocab": VOCABULARY, "merges": []} | vocabulary)))
    set_splits(backend, Path("m.gguf"))
    return backend


def pieces(backend: Tokenizer, text: str) -> list[str]:
    """What the tokenizer merges bytes within."""
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def split_by(regex: str) -> Tokenizer:
    backend = Tokenizer(BPE(vocab=VOCABULARY, merges=[]))
    steps = [
        pre_tokenizers.Split(Regex(regex), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return backend


def of_class(kind: Any) -> Tokenizer:
    backend: Tokenizer = kind(vocab=VOCABULARY, merges=[]).backend_tokenizer
    return backend


THEIRS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: of_class(GPT2Tokenizer),
    "phi-2": lambda: of_class(CodeGenTokenizer),
    "qwen2": lambda: of_class(Qwen2Tokenizer),
    "command-r": lambda: of_class(CohereTokenizer),
    "llama-bpe": lambda: split_by(TikTokenConverter.__init__.__defaults__[1]),  # type: ignore[index]
}


@pytest.mark.parametrize("name", THEIRS)
def test_texts_are_split_as_by_the_class_of_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = of_file(monkeypatch, name), THEIRS[name]()
    for text in TEXTS:
        assert pieces(ours, text) == pieces(theirs, text), text


@pytest.mark.skipif(not READS_GGUF, reason="transformers has this table from 5.18")
@pytest.mark.parametrize(
    "name",
    ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken", "qwen2"]
    + ["deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "gpt-4o", "llama4", "kanana2", "minimax-m2"],
)
def test_texts_are_split_as_by_the_table_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pytest.importorskip(TABLE_MODULE).GGUF_PRE_TOKENIZER_SPLITS
    ours, theirs = of_file(monkeypatch, name), split_by(table[name])
    for text in TEXTS:
        composed = text if ours.normalizer is None else ours.normalizer.normalize_str(text)
        assert pieces(ours, text) == pieces(theirs, composed), text


@pytest.mark.parametrize("name", ["smollm", "starcoder", "refact", "codeshell"])
def test_digits_are_split_from_all_else_before_gpt_2_splits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `command-r`, which llama.cpp splits by the same expressions, but characters stay as they are."""
    ours, theirs = of_file(monkeypatch, name), THEIRS["command-r"]()
    theirs.normalizer = None
    for text in TEXTS:
        assert pieces(ours, text) == pieces(theirs, text), text
    assert pieces(ours, "a 12's 3 b") == ["a", "Ġ", "1", "2", "'s", "Ġ", "3", "Ġb"]


@pytest.mark.parametrize(
    ("name", "whole"),
    [("llama-bpe", True), ("pixtral", True), ("tekken", True), ("qwen2", False), ("gpt-2", False), ("smollm", False)],
)
def test_words_of_the_vocabulary_are_taken_whole_where_the_model_does(
    name: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`abc` is a word of which the merges make `ab` and `c`; transformers' converters of Llama 3 and Tekken take it."""
    vocabulary = VOCABULARY | {"ab": 300, "abc": 301}
    backend = of_file(monkeypatch, name, vocab=vocabulary, merges=[("a", "b")])
    assert backend.encode("abc").tokens == (["abc"] if whole else ["ab", "c"])


@pytest.mark.parametrize("name", ["dbrx", "smaug-bpe", "deepseek-llm", "qwen35", None])
def test_names_that_nothing_confirms_are_refused(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"m.gguf: .*tokenizer.ggml.pre = {name!r}.*tokenizer.json"):
        of_file(monkeypatch, name)


def test_an_older_transformers_is_refused_by_the_version_that_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rmfast.data.gguf_tokenizer.READS_GGUF", False)
    (tmp_path / "m.gguf").touch()
    for path in (tmp_path, tmp_path / "m.gguf"):
        with pytest.raises(UserError, match="m.gguf: .*install transformers 5.18 or later.*tokenizer.json") as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)
