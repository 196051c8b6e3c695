"""What a run trained, a reward model or a policy: how a folder tells, and the network of a checkpoint."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from rmfast.checkpoint.store import MANIFEST, open_checkpoint, read_weights
from rmfast.checkpoint.whole import check_whole
from rmfast.errors import UserError
from rmfast.models.config import DTYPES
from rmfast.models.folder import read_json
from rmfast.models.hf import build_network, load_network, read_config
from rmfast.models.lora import adapt, merged
from rmfast.models.low_rank import LoraOptions
from rmfast.models.names import choose_row
from rmfast.models.network import Network
from rmfast.models.peft import ADAPTER_CONFIG
from rmfast.models.weights import HEAD, PROTOTYPES, TRAINING_ONLY, heads_of
from rmfast.outputs.checksums import write_json
from rmfast.outputs.marks import MODEL_MARK
from rmfast.parallel.trunk import TRUNK, check_fingerprint, fingerprint

ADAPTED = "adapted.json"  # in a checkpoint of an adapter: what it is, and of which model


def holds_policy(path: Path) -> bool:
    """Whether a folder is a policy that rmfast wrote, a checkpoint without reward heads or an exported model; or an
    adapter of one."""
    if (path / MANIFEST).is_file():
        with open_checkpoint(path) as (_, shapes):
            return f"model/{HEAD}" not in shapes
    if (path / ADAPTER_CONFIG).is_file():
        return read_json(path / ADAPTER_CONFIG).get("task_type") == "CAUSAL_LM"
    kinds = read_json(path / "config.json").get("architectures") or [""]
    return (path / MODEL_MARK).is_file() and str(kinds[0]).endswith("ForCausalLM")


def load_checkpoint(
    path: Path, *, dtype: torch.dtype, lm: bool = False, label: str | int | None = None
) -> tuple[Network, PreTrainedConfig]:
    """The network of a checkpoint, a reward model or, with `lm`, a policy; and its Hugging Face config.

    Args:
        dtype: of weights and activations.
        label: which of several reward heads (see `choose_row`).

    Raises:
        UserError: the checkpoint is of the other kind, or damaged.
    """
    check_whole(path)
    hf, state = read_config(path), read_weights(path)
    heads = heads_of(state)
    if lm and heads:
        raise UserError(f"{path}: a checkpoint of a reward model; a policy is a causal language model")
    if not lm and not heads:
        raise UserError(f"{path}: a checkpoint of a policy, which has no reward head: this is no reward model")
    if (path / ADAPTED).is_file():
        state = _whole(path, state, lm)
    state = {n: tensor.to(dtype) for n, tensor in state.items() if n not in ((PROTOTYPES,) if lm else TRAINING_ONLY)}
    if label is not None and (row := choose_row(label, heads, hf, path)) is not None:
        state[HEAD] = state[HEAD][row : row + 1]
    network = build_network(hf, where=str(path), heads=heads_of(state), lm=lm, dtype=dtype)
    network.load_state_dict(state, assign=True)
    return network, hf


def write_adapted(folder: Path, options: LoraOptions, base: Path, dtype: torch.dtype) -> None:
    """Say in a checkpoint whose weights it holds beside its adapter's.

    Args:
        base: the model that the adapter is trained on. dtype: of activations, which the trunk is stored in.
    """
    about = {"base": str(base.absolute()), "dtype": str(dtype).removeprefix("torch."), "lora": asdict(options)}
    write_json(folder / ADAPTED, about)


def _whole(path: Path, state: dict[str, Tensor], lm: bool) -> dict[str, Tensor]:
    """The weights of a checkpoint that holds an adapter and heads: the trunk's with the adapter merged in, and these.

    Raises:
        UserError: the trunk is not there any more, or is another one.
    """
    about = read_json(path / ADAPTED)
    base = Path(about["base"])
    if not base.exists():
        raise UserError(f"{path}: a checkpoint of an adapter of {base}, which is not here: put that model there")
    dtype = DTYPES[about["dtype"]]
    network, _ = load_network(base, heads=heads_of(state), new_heads=True, lm=lm, dtype=dtype)
    lora = about["lora"]
    adapt(network, LoraOptions(**lora | {"targets": tuple(lora["targets"])}), seed=0)
    ours = fingerprint(p for p in network.parameters() if not p.requires_grad)
    with open_checkpoint(path) as (read, shapes):
        # Behind them may be that of an LM head, which only training reads.
        check_fingerprint(str(base), ours, read(TRUNK, 0, shapes[TRUNK][0])[: len(ours)])
    return merged(network, {name: p.detach() for name, p in network.named_parameters()} | state)
