"""Loading tokenizers, their errors in one line, and what changes a fingerprint."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rmfast.data.tokenizer import fingerprint, load_tokenizer
from rmfast.errors import UserError


@pytest.fixture
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_load_gives_the_saved_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = load_tokenizer(folder)
    assert loaded("The cat <|im_end|>")["input_ids"] == tokenizer("The cat <|im_end|>")["input_ids"]
    assert fingerprint(loaded) == fingerprint(load_tokenizer(str(folder)))


def test_chat_template_from_file_and_text(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ 'own' }}")
    assert load_tokenizer(folder, str(tmp_path / "own.jinja")).chat_template == "{{ 'own' }}"
    assert load_tokenizer(folder, "{{ 'text' }}").chat_template == "{{ 'text' }}"
    with pytest.raises(UserError, match="data.chat_template: no such file"):
        load_tokenizer(folder, str(tmp_path / "absent.jinja"))
    (tmp_path / "latin.jinja").write_bytes(b"\xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        load_tokenizer(folder, str(tmp_path / "latin.jinja"))


@pytest.mark.parametrize("name", ["absent", "absent.gguf"])
def test_absent(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such file") as caught:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", "{"), ("notes.txt", ""), ("model.gguf", "GGUF")])
def test_unreadable(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    path = tmp_path / name if name.endswith(".gguf") else tmp_path
    with pytest.raises(UserError, match="cannot load a tokenizer|no eos|no fast version") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_no_eos(make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no eos token"):
        load_tokenizer(tmp_path)


def test_fingerprint_ignores_use_and_sees_every_change(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = make_tokenizer()
    before = fingerprint(tokenizer)
    tokenizer(["a", "b c d e f"], padding=True, truncation=True, max_length=3)
    assert fingerprint(tokenizer) == before == fingerprint(make_tokenizer())
    changed = [make_tokenizer(add_bos=True), make_tokenizer(add_eos=True), make_tokenizer(template="{{ 'x' }}")]
    other_eos, added = make_tokenizer(), make_tokenizer()
    other_eos.eos_token = "<pad>"
    added.add_tokens(["wonderful"])
    prints = [fingerprint(t) for t in (tokenizer, *changed, other_eos, added)]
    assert len(set(prints)) == len(prints)
