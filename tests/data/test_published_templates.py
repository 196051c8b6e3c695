"""What is learnt under the chat templates that models are published with, as TRL's package holds them."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from rmfast.errors import UserError

from .test_demonstrations import TALK, Make, encoded, learnt

TRL = find_spec("trl")
if TRL is None or not TRL.submodule_search_locations:
    pytest.skip("TRL is not installed", allow_module_level=True)
FOLDER = Path(TRL.submodule_search_locations[0]) / "chat_templates"
IMAGES = "llava_next"  # whose template takes no text alone
MARKED = sorted(path.name for path in FOLDER.glob("*_training.jinja") if not path.name.startswith(IMAGES))
PLAIN = {
    "llama3": "<|eot_id|>",
    "gemma3": "<end_of_turn>\n",
    "qwen2_5": "<|im_end|>\n",
    "cohere": "<|END_OF_TURN_TOKEN|>",
}
REWRITE = {"qwen3": "<think>\n\n</think>\n\nParis<|im_end|>\n", "gptoss": "<|channel|>final<|message|>Paris<|return|>"}


def template(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def test_marks_are_those_of_transformers_under_every_template(make_tokenizer: Make) -> None:
    assert len(MARKED) > 20
    for name in MARKED:
        tokenizer = make_tokenizer(template=template(name))
        theirs = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
        made = encoded(tokenizer, {"messages": TALK})
        assert made.ids[0].tolist() == theirs["input_ids"], name
        assert made.trained is not None and made.trained.tolist() == [bool(x) for x in theirs["assistant_masks"]], name


@pytest.mark.parametrize("name", PLAIN)
def test_without_marks_answers_are_learnt_with_what_closes_them(make_tokenizer: Make, name: str) -> None:
    tokenizer = make_tokenizer(template=template(f"{name}.jinja"))
    made = encoded(tokenizer, {"messages": TALK})
    assert made.ids[0].tolist() == tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"]
    assert learnt(tokenizer, made) == [turn["content"] + PLAIN[name] for turn in TALK[1::2]]


@pytest.mark.parametrize("name", REWRITE)
def test_what_rewrites_earlier_turns_is_refused_but_for_the_last(make_tokenizer: Make, name: str) -> None:
    tokenizer = make_tokenizer(template=template(f"{name}.jinja"))
    with pytest.raises(UserError, match=r"rewrites earlier turns .*sft\.turns last"):
        encoded(tokenizer, {"messages": TALK})
    assert learnt(tokenizer, encoded(tokenizer, {"messages": TALK}, "last")) == [REWRITE[name]]
