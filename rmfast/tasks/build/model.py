"""What a run takes from its model folder, beside weights: the window that its data must fit, and the reward head."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rmfast.config import Config
from rmfast.console import say
from rmfast.data.clock import fixed_date
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reward_model import tokens_note
from rmfast.models.config import context_window
from rmfast.models.hf import open_model, read_config
from rmfast.models.names import ENSEMBLE, SCORE


def check_window(config: Config, hf: PreTrainedConfig) -> None:
    """Refuse sequences that the model has no positions for.

    Raises:
        UserError: data.max_length is more than the model takes.
    """
    window, most = context_window(hf), config.data.max_length
    if window is not None and most > window:
        raise UserError(
            f"data.max_length: {most:,} tokens are more than the {window:,} that {config.model.path} takes "
            f"(max_position_embeddings in its config.json): set data.max_length to {window} or less"
        )


def network_heads(config: Config) -> dict[str, Any]:
    """The heads that a config's network has, as arguments of `load_network`: a language model has no reward head."""
    is_sft = config.task == "sft"
    return {"heads": 0 if is_sft else config.model.heads, "lm": is_sft or config.objective.lm > 0}


def stored_heads(path: str) -> int:
    """Reward heads of a model folder, or labels of a classifier; 0 of one without."""
    with open_model(Path(path), read_config(path), label=ENSEMBLE) as weights:
        return weights[SCORE].shape[0] if SCORE in weights else 0


def head_line(config: Config, hf: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Whether training begins with a new reward head or with the folder's, as a line."""
    model = config.model
    found = 0 if model.from_scratch else stored_heads(model.path)
    if not found:
        many = f"{model.heads} reward heads are" if (model.heads or 1) > 1 else "the reward head is"
        return f"{many} new, randomly initialised (run.seed {config.run.seed})"
    many = f"the {found} reward heads are those" if found > 1 else "the reward head is that"
    note = tokens_note(hf, tokenizer)
    return f"{many} of {model.path}" + (f"; {note}" if note else "")


def say_date(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say which date a model's chat template is given, if it reads the clock."""
    date = fixed_date(tokenizer.chat_template)
    if date is not None:
        say(f"{path}: the chat template reads the clock; it is given {date} on any day (template_date)")
