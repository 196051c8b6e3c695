"""Models from Hugging Face folders: config, safetensors (or GGUF), reward head."""

import contextlib
import json
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from rmfast.errors import UserError
from rmfast.models.config import FAMILIES, decoder_config, supported_families
from rmfast.models.decoder import Decoder
from rmfast.models.gguf import gguf_file, gguf_weights, read_gguf_config
from rmfast.models.recompute import Recompute
from rmfast.models.reward import RewardNetwork, draw, initialise
from rmfast.models.weights import HEAD, StoredWeight, hf_parts, join

Reader = dict[str, StoredWeight]
IGNORED = ("rotary_emb.inv_freq", "lm_head.weight", "masked_bias")


def read_config(path: str | Path) -> PreTrainedConfig:
    """The Hugging Face config of a model folder or GGUF file.

    Raises:
        UserError: there is none, or its architecture is not known.
    """
    path = Path(path)
    gguf = gguf_file(path)
    if gguf is not None:
        return read_gguf_config(gguf)
    if not (path / "config.json").is_file():
        reason = "holds no config.json and no .gguf file" if path.is_dir() else "is not a folder or .gguf file"
        raise UserError(f"{path} {reason}; a model is a Hugging Face folder or a .gguf file (model.path)")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)  # None would ask on the terminal
    except Exception as error:  # transformers' own validation raises kinds of its own
        kind = _model_type(path)
        if kind is not None and kind not in FAMILIES:
            raise UserError(
                f"{path}: architecture {kind!r} is not supported; these are: {supported_families()}"
            ) from error
        raise UserError(f"{path}: the model's config cannot be read: {first_line(error)}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{path}: quantized weights are not supported; give bf16, fp16, fp32 or GGUF ones")
    return config


def _model_type(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return config.get("model_type") if isinstance(config, dict) else None
    return None


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _in_memory(tensor: Tensor) -> StoredWeight:
    return StoredWeight(lambda: tensor, lambda: tensor)


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Reader]:
    """Name -> what reads it, of every weight in a model folder; what was not read is not in memory."""
    gguf = gguf_file(path)
    if gguf is not None:
        yield gguf_weights(gguf)
        return
    files = sorted(path.glob("*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = [path / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: cannot be read as an index of weights: {first_line(error)}") from error
    pickled = sorted(path.glob("pytorch_model*.bin"))
    with contextlib.ExitStack() as stack:
        reader: Reader = {}
        for file in files:
            try:
                handle = stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: cannot be read as safetensors: {first_line(error)}") from error
            reader |= {
                name: StoredWeight(partial(handle.get_tensor, name), partial(handle.get_slice, name))
                for name in handle.keys()  # noqa: SIM118
            }
        if not files:
            if not pickled:
                raise UserError(f"{path}: no weights (*.safetensors) in this folder")
            for file in pickled:
                try:
                    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
                    raise UserError(
                        f"{file}: is no plain file of tensors, and pickled objects are never run; "
                        "convert the model to safetensors"
                    ) from error
                reader |= {name: _in_memory(tensor) for name, tensor in state.items()}
        yield reader


def build_network(
    hf: PreTrainedConfig,
    *,
    where: str,
    heads: int = 1,
    lm: bool = False,
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
    recompute: Recompute = "none",
    impl: str = "auto",
) -> RewardNetwork:
    """A reward network without weights (on torch's meta device)."""
    config = decoder_config(hf, where)
    with torch.device("meta"):
        decoder = Decoder(config, dtype=dtype, dropout=dropout, recompute=recompute, impl=impl)
        network = RewardNetwork(decoder, heads=heads, lm=lm)
    # Buffers are not in a state dict: give them back their values.
    for layer in decoder.layers:
        layer.inv_freq = torch.tensor(config.rope)
    return network


def load_network(
    path: str | Path,
    *,
    heads: int | None = None,
    new_heads: bool = False,
    seed: int = 0,
    from_scratch: bool = False,
    lm: bool = False,
    dtype: torch.dtype = torch.float32,
    weights_dtype: torch.dtype | None = torch.float32,
    dropout: float = 0.0,
    recompute: Recompute = "none",
    impl: str = "auto",
) -> tuple[RewardNetwork, PreTrainedConfig]:
    """A reward network with the weights of a Hugging Face folder or GGUF file, on the CPU.

    Args:
        path: of a base or chat model, or of a reward model (`*ForSequenceClassification`).
        heads: reward heads; default those that the folder has, or 1.
        new_heads: whether a folder without heads gets random ones, drawn from `seed`.
        from_scratch: take only the config and draw all weights.
        lm: compute log-probabilities in training (see `RewardNetwork`).
        dtype: of the activations. weights_dtype: of the parameters; None keeps them as `dtype`.
        dropout, recompute, impl: see `Decoder`.

    Returns:
        The network and the folder's config.

    Raises:
        UserError: architecture, missing or unexpected weights, shapes, heads.
    """
    path = Path(path)
    hf = read_config(path)
    options: dict[str, Any] = {"dtype": dtype, "dropout": dropout, "recompute": recompute, "lm": lm, "impl": impl}
    stored = weights_dtype or dtype
    if from_scratch:
        network = build_network(hf, where=str(path), heads=heads or 1, **options)
        empty = {name: torch.empty(p.shape, dtype=stored) for name, p in network.named_parameters()}
        network.load_state_dict(empty, assign=True)
        initialise(network, seed)
        return network, hf
    with open_weights(path) as reader:
        absent, heads = _heads(reader, heads, new_heads, path)
        network = build_network(hf, where=str(path), heads=heads, **options)
        state = _read_state(network, reader, absent, stored, path)
    if absent:
        state[HEAD] = torch.empty(network.head.weight.shape, dtype=stored)
    network.load_state_dict(state, assign=True)
    if absent:
        initialise(network, seed, absent)
    return network, hf


def _heads(reader: Reader, asked: int | None, new: bool, path: Path) -> tuple[set[str], int]:
    """Weights that a folder without heads lacks, and the number of heads."""
    if "score.weight" not in reader:
        if not new:
            raise UserError(f"{path}: no reward head (score.weight): this is no reward model; train one from it")
        return {HEAD}, asked or 1
    found = reader["score.weight"].shape[0]
    if asked not in (None, found):
        raise UserError(f"{path}: model has {found} reward heads, {asked} are asked for (model.heads)")
    return set(), found


def _read_state(
    network: RewardNetwork, reader: Reader, absent: set[str], dtype: torch.dtype, path: Path
) -> dict[str, Tensor]:
    """All weights of a network but those in `absent`, checked against the shapes that the config asks for."""
    stored, parts = _find(network, reader, absent, path), hf_parts(network.config)
    # Copied: what is read is mapped, so that a change of the file would change the weights, and its alignment (with it
    # the rounding) is the file's. Joined parts are copies already.
    return {
        name: join(parts[name], lambda part: stored[part]()).to(dtype, copy=len(parts[name]) == 1)
        for name, _ in network.named_parameters()
        if name not in absent
    }


def _find(network: RewardNetwork, reader: Reader, absent: set[str], path: Path) -> dict[str, StoredWeight]:
    """A folder's weights that a network is made of, all but those in `absent`, by Hugging Face's names.

    Raises:
        UserError: one is missing, has another shape, or belongs to no such model.
    """
    # A folder saved from a bare trunk (LlamaModel) has no "model." before its names.
    bare = "model.embed_tokens.weight" not in reader and "embed_tokens.weight" in reader
    used: set[str] = set()
    stored: dict[str, StoredWeight] = {}
    parts = hf_parts(network.config)
    for name, parameter in network.named_parameters():
        # Part by part: a wrong one may not join with the others, or be made up for by them.
        for part, rows in parts[name] if name not in absent else ():
            shape = (rows if rows >= 0 else parameter.shape[0], *parameter.shape[1:])
            theirs = part.removeprefix("model.") if bare else part
            if theirs not in reader and theirs == "lm_head.weight":
                raise UserError(f"{path}: no lm_head.weight, which an LM loss (objective.lm) needs")
            if theirs not in reader:
                raise UserError(f"{path}: weight {theirs} is missing: the folder does not match its config.json")
            used.add(theirs)
            stored[part] = reader[theirs]
            if stored[part].shape != shape:
                raise UserError(f"{path}: {theirs} has shape {stored[part].shape} where config.json says {shape}")
    unexpected = sorted(n for n in reader if n not in used and not n.endswith(IGNORED))
    if unexpected:
        more = f" (and {len(unexpected) - 1} more)" if len(unexpected) > 1 else ""
        raise UserError(f"{path}: weight {unexpected[0]}{more} is not part of a {network.config.family} model")
    return stored


class ModelRows:
    """Parts of a folder's weights by our names, fp32, so that a process reads no more than it holds.

    Weights that are to be drawn are drawn whole, one at a time, as `load_network` draws them.
    """

    def __init__(self, network: RewardNetwork, stored: dict[str, StoredWeight], drawn: set[str], seed: int) -> None:
        self.parameters = dict(network.named_parameters())
        self._numbers = {name: i for i, name in enumerate(self.parameters)}
        self._network, self._stored, self._drawn, self._seed = network, stored, drawn, seed
        self._parts = hf_parts(network.config)

    def __call__(self, name: str, begin: int, end: int, columns: tuple[int, int] | None = None, /) -> Tensor:
        """Rows `begin` to `end` (exclusive) of a weight, of each all columns or some."""
        if name in self._drawn:
            rows = draw(self._network, self._seed, self._numbers[name], name)[begin:end]
            return rows if columns is None else rows[:, slice(*columns)]
        found, start = [], 0
        for part, count in self._parts[name]:
            stored = self._stored[part]
            count = count if count >= 0 else stored.shape[0]
            low, high = max(begin - start, 0), min(end - start, count)
            if low < high:
                view = stored.view()
                found.append(view[low:high] if columns is None else view[low:high, slice(*columns)])
            start += count
        return torch.cat(found).float()


@contextlib.contextmanager
def open_rows(
    path: str | Path,
    hf: PreTrainedConfig,
    *,
    heads: int | None,
    seed: int,
    from_scratch: bool,
    lm: bool,
) -> Iterator[ModelRows]:
    """What `load_network` would load (with `new_heads`), to be read in parts. Arguments and errors are its own."""
    path = Path(path)
    if from_scratch:
        network = build_network(hf, where=str(path), heads=heads or 1, lm=lm)
        yield ModelRows(network, {}, {name for name, _ in network.named_parameters()}, seed)
        return
    with open_weights(path) as reader:
        absent, heads = _heads(reader, heads, True, path)
        network = build_network(hf, where=str(path), heads=heads, lm=lm)
        yield ModelRows(network, _find(network, reader, absent, path), absent, seed)
