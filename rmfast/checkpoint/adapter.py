"""A trained adapter as a PEFT folder: `PeftModel.from_pretrained(base, folder)` gives the trained model."""

import json
from collections.abc import Collection
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rmfast.checkpoint.export import write_tokenizer
from rmfast.data.files import folder_written_whole
from rmfast.errors import UserError
from rmfast.models.lora import HEAD_WEIGHT
from rmfast.models.low_rank import LoraOptions
from rmfast.models.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, peft_settings
from rmfast.models.save import save_ends
from rmfast.models.tensor_file import write_tensors
from rmfast.outputs.marks import kept_model, mark_model


def publish_adapter(
    folder: Path,
    state: dict[str, Tensor],
    options: LoraOptions,
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    pad: int,
    ends: Collection[int] = (),
) -> None:
    """Write a PEFT folder under a temporary name and rename it; one that rmfast wrote before is replaced.

    Args:
        state: by PEFT's names, as `to_peft` gives it.
        base: the model that the adapter belongs to.
        pad: the token that the tokenizer pads with.
        ends: of a policy's adapter, the ids that end its samples; PEFT's `generate` has the base's.

    Raises:
        UserError: a folder of that name holds what rmfast did not write.
    """
    if (file := kept_model(folder)) is not None:
        raise UserError(f"{folder}: rmfast did not write {file}, and will not remove it; move it")
    with folder_written_whole(folder) as temporary:
        temporary.mkdir(parents=True)
        write_tokenizer(tokenizer, temporary, pad)
        settings = json.dumps(peft_settings(options, base, state), indent=2)
        (temporary / ADAPTER_CONFIG).write_text(settings + "\n", encoding="utf-8")
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        written = write_tensors(temporary / ADAPTER_WEIGHTS, tensors, {"format": "pt"})
        if HEAD_WEIGHT not in state:
            save_ends(temporary, ends, pad)
        mark_model(temporary, {ADAPTER_WEIGHTS: written})
