"""Texts that are tokenised in pieces and by words have the ids that the tokenizer gives to the whole."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jinja2
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rmfast.data import pieces
from rmfast.data.pieces import text_ids
from rmfast.data.template import render
from rmfast.data.word_splits import SPLITS
from rmfast.data.words import Words

LINES = [
    "The capital of France is Paris, and it's 12 o'clock.  The cats sat on the mat; they’re 3.5 years old!",
    "user hello assistant <b> x<y\n\nHow much is a word? We'll see é ﬁ 你好 ok ok END of it",
] * 3
FLAGS = {"normalized": False, "special": True}
SPECIAL = ("<s>", "</s>", "<|end|>", "<|end|>x", "[INST]")
TEMPLATE = "<s>{% for m in messages %}[INST]{{ m.role + m.content }}<|end|>END</s>{% endfor %}<|mask|>|a|"
Byte, Meta = pre_tokenizers.ByteLevel, pre_tokenizers.Metaspace


def regex(name: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(SPLITS[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, Byte(add_prefix_space=False, use_regex=False)])


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer, and whether its texts are cut: in front of all of `SPECIAL`, and at words."""

    splits: Any
    normalizer: Any = None
    model: str = "BPE"
    added: tuple[tuple[str, dict[str, Any]], ...] = ()
    cut: tuple[str, ...] = SPECIAL
    words: bool = False


PHI = ("<|end|>", {"rstrip": True, **FLAGS})
LLAMA_2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
KINDS = {
    "gpt-2": Kind(Byte(add_prefix_space=False), words=True),
    "smollm": Kind(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), Byte(add_prefix_space=False)]), words=True),
    **{name: Kind(regex(name), words=True) for name in SPLITS},
    "composed": Kind(regex("qwen2"), normalizers.NFC(), words=True),
    "another regex": Kind(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated"), Byte(False, use_regex=False)])
    ),
    "one word": Kind(Byte(add_prefix_space=False, use_regex=False)),
    "space in front": Kind(Byte(add_prefix_space=True)),
    "lower case": Kind(Byte(add_prefix_space=False), normalizers.Lowercase()),
    "strips": Kind(Byte(add_prefix_space=False), normalizers.Strip()),
    "metaspace first": Kind(Meta(prepend_scheme="first")),
    "metaspace always": Kind(Meta(prepend_scheme="always")),
    "metaspace never": Kind(Meta(prepend_scheme="never", split=False)),
    "llama-2": Kind(None, LLAMA_2),
    "bert": Kind(pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(), "WordPiece"),
    "unigram": Kind(Meta(prepend_scheme="first"), normalizers.NFKC(), "Unigram"),
    "takes spaces behind": Kind(Byte(add_prefix_space=False), added=(PHI,)),
    "takes spaces in front": Kind(
        Byte(add_prefix_space=False),
        added=(("<|end|>", {"lstrip": True, **FLAGS}), ("END", {"lstrip": True, **FLAGS})),
        cut=("<s>", "</s>", "[INST]"),
    ),
    "words of their own": Kind(
        Byte(add_prefix_space=False),
        added=(("END", {"single_word": True, **FLAGS}), ("ok", {"normalized": True, "single_word": True})),
        words=True,
    ),
    "reach over": Kind(
        Byte(add_prefix_space=False),
        added=(("|a|<s", FLAGS), ("</s>[I", FLAGS)),
        cut=("</s>", "<|end|>", "<|end|>x"),
        words=True,
    ),
    "holds spaces": Kind(Byte(add_prefix_space=False), added=(("x END", FLAGS), ("a of", {"normalized": True}))),
    "of normalized text": Kind(
        Byte(add_prefix_space=False),
        normalizers.Lowercase(),
        added=(("<|end|>", {"special": True, "normalized": True}),),
        cut=("<s>", "</s>", "[INST]"),
    ),
}


def made(kind: Kind) -> PreTrainedTokenizerFast:
    backend = Tokenizer({"BPE": models.BPE, "WordPiece": models.WordPiece, "Unigram": models.Unigram}[kind.model]())
    backend.pre_tokenizer, backend.normalizer = kind.splits, kind.normalizer
    added = dict.fromkeys(SPECIAL, FLAGS) | dict(kind.added)
    trainer = getattr(trainers, f"{kind.model.replace('BPE', 'Bpe')}Trainer")(
        vocab_size=400,
        special_tokens=["<unk>"],
        initial_alphabet=Byte.alphabet() if kind.model == "BPE" else [],
        show_progress=False,
        **({"unk_token": "<unk>"} if kind.model == "Unigram" else {}),
    )
    backend.train_from_iterator(LINES, trainer)
    if kind.model != "Unigram":
        backend.model.unk_token = "<unk>"
    tokens = [AddedToken(text, **flags) for text, flags in added.items()]
    backend.add_special_tokens([token for token in tokens if token.special])
    backend.add_tokens([token for token in tokens if not token.special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


BITS = [
    *SPECIAL,
    "END",
    "ok",
    "|a|",
    "<s",
    "[I",
    " of ",
    *" \n\t\r.,'’1x<é你ﬁ▁\u00a0\u0301\x1c",
    "  ",
    " \n",
    "\n\n",
    "\n/a",
    "!\n",
]
BITS += [between for token in (*SPECIAL, "END") for between in (f"{token} a", f"b {token}", f"{token}c")]
BITS += [word + space for word in LINES[0].split() for space in ("", " ")]


def odd_texts() -> list[str]:
    draw = random.Random(0)
    texts = ["".join(draw.choices(BITS, k=draw.randrange(16))) for _ in range(800)]
    return list(
        dict.fromkeys(texts + [chr(draw.randrange(0xD800)) + " a" + chr(draw.randrange(0xD800)) for _ in texts])
    )


TEXTS = odd_texts()


@pytest.mark.parametrize("name", KINDS)
def test_the_ids_are_those_of_the_whole_text(name: str) -> None:
    tokenizer = made(KINDS[name])
    whole = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    by_rules = pieces._allowed(tokenizer, pieces._cut_tokens(tokenizer)).ids_of(TEXTS)  # whatever the check says
    assert [ids.tolist() for ids in by_rules] == whole
    found = text_ids(tokenizer, TEXTS)
    assert list(found) == TEXTS and [ids.tolist() for ids in found.values()] == whole
    assert all(ids.dtype == "int32" and ids.flags.writeable for ids in found.values())


@pytest.mark.parametrize("name", KINDS)
def test_where_texts_are_cut(name: str) -> None:
    cuts = pieces._cuts_of(made(KINDS[name]))
    assert cuts is not None and cuts.tokens is not None
    assert (cuts.words is not None) == KINDS[name].words
    text = "a" + "".join(f"{token} b" for token in SPECIAL)
    at = pieces.pieces(text, cuts.tokens)[1:]
    assert {token for token in SPECIAL if any(piece.startswith(token) for piece in at)} == set(KINDS[name].cut)


def test_a_tokenizer_that_the_check_refuses_is_given_whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = made(KINDS["another regex"])
    monkeypatch.setattr(pieces, "may_cut", lambda backend: True)
    cuts = pieces._cuts_of(tokenizer)
    assert cuts is not None and cuts.words is None, "words that are no words of this tokenizer"
    tokenizer.split_special_tokens = True
    assert pieces._cuts_of(tokenizer) is None
    assert text_ids(tokenizer, ["a<s>"])["a<s>"].tolist() == tokenizer("a<s>", add_special_tokens=False)["input_ids"]


def test_what_texts_share_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, asked = made(KINDS["gpt-2"]), list[str]()
    text_ids(tokenizer, [""])  # checks the cuts
    original = Words.ids_of
    monkeypatch.setattr(
        Words, "ids_of", lambda self, texts: asked.extend(texts) or original(self, asked[-len(texts) :])
    )
    text_ids(tokenizer, ["<s>How are they?<|end|>", "<s>How are they?<|end|> a", "<s>How are they?<|end|> b c"])
    assert asked == ["<s>How are they?", "<|end|>", "<|end|> a", "<|end|> b c"]


def test_words_are_forgotten_when_they_are_long_or_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmfast.data.words._MOST", 2)
    monkeypatch.setattr("rmfast.data.words._LONGEST", 3)
    tokenizer = made(KINDS["gpt-2"])
    words = Words(tokenizer.backend_tokenizer)
    for text, kept in (("user\na b capital of", ["b", "of"]), ("a mat b", []), ("a of b", ["b", "of"])):
        assert words.ids_of([text])[text].tolist() == tokenizer(text)["input_ids"]
        assert sorted(words._spaced) == kept and "a" in words._first and "user\n" not in words._first


def test_plain_messages_are_given_to_the_template_as_transformers_gives_them(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, calls = make_tokenizer(), list[dict[str, Any]]()
    original = jinja2.Template.render
    monkeypatch.setattr(
        jinja2.Template, "render", lambda self, **given: calls.append({"": self, **given}) or original(self, **given)
    )
    turns = [{"role": "user", "content": "a "}, {"role": "assistant", "content": ""}]
    for is_prompt in (False, True):
        theirs = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=is_prompt)
        assert render(tokenizer, turns, is_prompt=is_prompt) == theirs
        assert calls[-1] == calls[-2] and len(calls) == 2 * (1 + is_prompt)
