"""Loading a tokenizer, and the hash that tells whether tokens made with one may be used with another."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rmfast.data.clock import fix_date, iso_date
from rmfast.errors import UserError, first_line, shown
from rmfast.paths import whole_text


def load_tokenizer(
    path: str | Path, chat_template: str | None = None, template_date: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer of a Hugging Face folder, a GGUF file or a hub name.

    Args:
        path: a folder, a .gguf file, or a name on the hub. An adapter's folder may leave its tokenizer to its base.
        chat_template: a template file or the template's text; it replaces the tokenizer's.
        template_date: YYYY-MM-DD, what a template that reads the clock is given; None for the date that it was given
            before, or else `rmfast.data.clock.DEFAULT_DATE`.

    Raises:
        UserError: nothing to load there, no fast tokenizer, or one without an eos token; no date.
    """
    # They need torch, which takes a second to import, and whoever looks at data without a model never needs them.
    from transformers import AutoTokenizer

    from rmfast.data.gguf_tokenizer import check_reader, set_splits
    from rmfast.gguf_file import first_part
    from rmfast.models.peft import tokenizer_folder

    path = Path(path)
    is_local = path.exists()
    if not is_local and (path.suffix == ".gguf" or str(path).count("/") > 1 or str(path).startswith((".", "~"))):
        raise UserError(f"no tokenizer at {path}: no such file or folder")
    path = tokenizer_folder(path)
    if path.is_dir() and not (path / "tokenizer_config.json").is_file():
        ggufs = {first_part(file) for file in path.iterdir() if file.suffix.lower() == ".gguf"}
        path = ggufs.pop() if len(ggufs) == 1 else path
    elif path.is_file():
        path = first_part(path)
    try:
        if path.is_file():
            check_reader(path)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            set_splits(tokenizer.backend_tokenizer, path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # the libraries below raise every kind, a bare Exception for a broken tokenizer.json
        raise UserError(f"cannot load a tokenizer from {path}: {first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {path} has no fast version: convert it to a tokenizer.json")
    if not isinstance(tokenizer.model_max_length, int | float):
        longest = shown(tokenizer.model_max_length)
        raise UserError(f"{path}: model_max_length in its tokenizer_config.json is {longest}, which is no number")
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token  # BERT and its like end a text so
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {path} has no eos token: set eos_token in its tokenizer_config.json")
    if chat_template is not None:
        tokenizer.chat_template = _template_text(chat_template)
    try:
        date = None if template_date is None else iso_date(template_date)
    except ValueError as error:
        raise UserError(f"the chat template's date (data.template_date) {error}") from None
    tokenizer.chat_template = fix_date(tokenizer.chat_template, date)
    return tokenizer


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer with a token for every byte, and ChatML for messages: for looking at data without a model."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(alphabet))}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of all that decides token ids: vocabulary and rules, chat template with its date, eos, bos."""
    backend, *others = _rules(tokenizer)
    parts = [backend, tokenizer.chat_template, *others]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def same_ids(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give every text the same ids, whatever their chat templates."""
    return _rules(one) == _rules(other)


def _rules(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """All that decides the token ids of a text."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are leftovers of the last call, and each of our calls sets them again.
    backend = {name: value for name, value in backend.items() if name not in ("padding", "truncation")}
    # The last: what the tokenizer adds by itself.
    return [backend, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer("")["input_ids"]]


def _template_text(chat_template: str) -> str:
    if "{" in chat_template:
        return chat_template
    path = Path(chat_template)
    if not path.is_file():
        raise UserError(f"data.chat_template: no such file: {path}")
    try:
        return whole_text(path)
    except UnicodeDecodeError:
        raise UserError(f"data.chat_template: {path} is not UTF-8") from None
