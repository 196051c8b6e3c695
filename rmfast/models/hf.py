"""Models from Hugging Face folders: config, safetensors (or GGUF), reward head."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from rmfast.errors import UserError, first_line
from rmfast.models.config import decoder_config
from rmfast.models.decoder import Decoder
from rmfast.models.exported import check_exported
from rmfast.models.families import FAMILIES, supported_families
from rmfast.models.folder import Reader, open_files, read_json, told, weight_files
from rmfast.models.gguf import gguf_file, gguf_weights, read_gguf_config, tensor_name
from rmfast.models.names import (
    SCORE,
    choose_row,
    head_files,
    head_names,
    joined,
    likely_heads,
    refuse_other_scores,
    unwrapped,
    with_head,
)
from rmfast.models.network import Network, initialise
from rmfast.models.peft import chain
from rmfast.models.recompute import Recompute
from rmfast.models.weights import EMBEDDING, HEAD, LM_HEAD, StoredWeight, hf_parts, join

IGNORED = ("rotary_emb.inv_freq", "lm_head.weight", "masked_bias")


def read_config(path: str | Path) -> PreTrainedConfig:
    """The Hugging Face config of a model folder or GGUF file; of an adapter's folder, that of its base.

    Raises:
        UserError: there is none, or its architecture is not known.
    """
    path = chain(Path(path))[1]
    gguf = gguf_file(path)
    if gguf is not None:
        return read_gguf_config(gguf)
    if not (path / "config.json").is_file():
        reason = "holds no config.json and no .gguf file" if path.is_dir() else "is not a folder or .gguf file"
        what = f"{reason}; a model is a Hugging Face folder or a .gguf file (model.path)"
        raise UserError(f"{path} {what}{told(path)}")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)  # None would ask on the terminal
    except Exception as error:  # transformers' validation raises errors of several kinds
        kind = read_json(path / "config.json").get("model_type")
        if isinstance(kind, str) and kind not in FAMILIES:
            raise UserError(
                f"{path}: architecture {kind!r} is not supported; these are: {supported_families()}"
            ) from error
        raise UserError(f"{path}: the model's config cannot be read: {first_line(error)}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{path}: quantized weights are not supported; give bf16, fp16, fp32 or GGUF ones")
    return config


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Reader]:
    """Name -> what reads it, of every weight in a model folder; what was not read is not in memory."""
    gguf = gguf_file(path)
    if gguf is not None:
        yield gguf_weights(gguf)
        return
    with open_files(weight_files(path)) as reader:
        yield reader


def _shown(path: Path) -> Callable[[str], str]:
    """What an error calls a weight of a folder or file that has a name of Hugging Face's."""
    return tensor_name if gguf_file(path) else str


@contextlib.contextmanager
def open_named(path: Path, hf: PreTrainedConfig, names: Collection[str]) -> Iterator[tuple[Reader, bool]]:
    """A folder's weights by the names of its architecture, and whether its files have others. Those of an adapter's
    folder are its base's, with the adapter merged in.

    Args:
        names: the architecture's. Where `score.weight` is one of them, it is the folder's reward head, if there is one.

    Raises:
        UserError: weights or a head that cannot be read rightly (see `rmfast.models.names`).
    """
    adapters, base = chain(path)
    with open_weights(base) as stored, contextlib.ExitStack() as stack:
        beside = Reader()
        for file in (file for folder in (base, *(one.path for one in adapters)) for file in head_files(folder)):
            beside |= head_names(stack.enter_context(open_files([file])), file)
        reader = joined(unwrapped(stored, names, base), beside, path)
        tied = bool(getattr(hf, "tie_word_embeddings", False))
        for adapter in reversed(adapters):
            reader = adapter.applied(stack.enter_context(open_files([adapter.weights])), reader, tied=tied)
        if SCORE in names:
            reader = with_head(reader, path, getattr(hf, "value_head_prefix", None), _shown(path))
        elif other := [name for name in beside if name not in names]:
            raise UserError(
                f"{path}: {other[0]}, in a file beside the weights, is no part of the classifier that transformers has "
                f"for {hf.model_type!r}: give its tensors the names that it has there, or move the file away"
            )
        yield reader, bool(adapters) or reader.keys() != stored.keys()


@contextlib.contextmanager
def open_model(
    path: Path, hf: PreTrainedConfig, *, heads: int | None = None, label: str | int | None = None
) -> Iterator[Reader]:
    """A folder's weights by the names of a decoder, its reward head (where it has one) as `score.weight`.

    Args:
        heads: how many are asked for; where a classifier has as many labels, they are taken for heads of an ensemble.
        label: see `choose_row`.

    Raises:
        UserError: as `open_named` and `choose_row`.
    """
    names = {name for parts in hf_parts(decoder_config(hf, str(path))).values() for name, _ in parts}
    with open_named(path, hf, names) as (reader, _):
        if SCORE in reader and heads != 0:
            refuse_other_scores(hf, path)
        if SCORE in reader and heads != 0 and (label is not None or heads != reader[SCORE].shape[0]):
            row = choose_row(label, reader[SCORE].shape[0], hf, path)
            reader |= {} if row is None else {SCORE: reader[SCORE].row(row)}
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
    attention: str | None = None,
) -> Network:
    """A reward network without weights (on torch's meta device)."""
    config = decoder_config(hf, where)
    with torch.device("meta"):
        decoder = Decoder(config, dtype=dtype, dropout=dropout, recompute=recompute, impl=impl, attention=attention)
        network = Network(decoder, heads=heads, lm=lm)
    decoder.inv_freq = decoder.frequencies()  # a buffer, which is not in a state dict
    return network


def load_network(
    path: str | Path,
    *,
    heads: int | None = None,
    label: str | int | None = None,
    new_heads: bool = False,
    seed: int = 0,
    from_scratch: bool = False,
    lm: bool = False,
    dtype: torch.dtype = torch.float32,
    weights_dtype: torch.dtype | None = torch.float32,
    dropout: float = 0.0,
    recompute: Recompute = "none",
    impl: str = "auto",
    attention: str | None = None,
) -> tuple[Network, PreTrainedConfig]:
    """A reward network with the weights of a Hugging Face folder or GGUF file, on the CPU.

    Args:
        path: of a base or chat model, or of a reward model (`*ForSequenceClassification`).
        heads: reward heads; default those that the folder has, or 1; 0 for a language model (with `lm`).
        label: which label of a classifier of several is the reward (see `choose_row`).
        new_heads: whether a folder without heads gets random ones, drawn from `seed`.
        from_scratch: take only the config and draw all weights.
        lm: compute log-probabilities in training (see `Network`).
        dtype: of the activations. weights_dtype: of the parameters; None keeps them as `dtype`.
        dropout, recompute, impl, attention: see `Decoder`.

    Returns:
        The network and the folder's config.

    Raises:
        UserError: architecture, missing or unexpected weights, shapes, heads.
    """
    path = Path(path)
    hf = read_config(path)
    options: dict[str, Any] = {"dtype": dtype, "dropout": dropout, "recompute": recompute, "lm": lm}
    options |= {"impl": impl, "attention": attention}
    stored = weights_dtype or dtype
    if from_scratch:
        network = build_network(hf, where=str(path), heads=1 if heads is None else heads, **options)
        try:
            empty = {name: torch.empty(p.shape, dtype=stored) for name, p in network.named_parameters()}
        except RuntimeError as error:
            raise UserError(f"{path}: weights of these sizes find no room: {first_line(error)}") from None
        network.load_state_dict(empty, assign=True)
        initialise(network, seed)
        return network, hf
    check_exported(path)
    with open_model(path, hf, heads=heads, label=label) as reader:
        absent, heads = head_count(reader, heads, new_heads, path)
        network = build_network(hf, where=str(path), heads=heads, **options)
        state = _read_state(network, reader, absent, stored, path)
    if absent:
        state[HEAD] = torch.empty(network.get_parameter(HEAD).shape, dtype=stored)
    network.load_state_dict(state, assign=True)
    if absent:
        initialise(network, seed, absent)
    return network, hf


def no_head(path: Path, reader: Reader, what: str = "score.weight") -> UserError:
    """The error of a folder without a reward head, which names the weights that could be one."""
    shown, found = _shown(path), likely_heads(reader)
    hint = f"; what may be its head: {', '.join(found[:3])}; a head of rows without bias is called {shown(SCORE)}"
    return UserError(
        f"{path}: no reward head ({shown(what)}): this is no reward model; train one from it, or let it judge (--judge)"
        f"{hint if found else ''}"
    )


def head_count(reader: Reader, asked: int | None, new: bool, path: Path) -> tuple[set[str], int]:
    """Weights that a folder without heads lacks, and the number of heads."""
    if asked == 0:
        if SCORE in reader:
            raise UserError(f"{path}: a reward model; a policy is a causal language model")
        return set(), 0
    if SCORE not in reader:
        if not new:
            raise no_head(path, reader)
        return {HEAD}, asked or 1
    found = reader[SCORE].shape[0]
    if asked not in (None, found):
        raise UserError(f"{path}: model has {found} reward heads, {asked} are asked for (model.heads)")
    return set(), found


def _read_state(
    network: Network, reader: Reader, absent: set[str], dtype: torch.dtype, path: Path
) -> dict[str, Tensor]:
    """All weights of a network but those in `absent`, checked against the shapes that the config asks for."""
    stored, parts = find_weights(network, reader, absent, path), hf_parts(network.config)
    # Copied: what is read is mapped, so that a change of the file would change the weights, and its alignment (with it
    # the rounding) is the file's. Joined parts are copies already.
    return {
        name: join(parts[name], lambda part: stored[part]()).to(dtype, copy=len(parts[name]) == 1)
        for name, _ in network.named_parameters()
        if name not in absent
    }


def find_weights(network: Network, reader: Reader, absent: set[str], path: Path) -> dict[str, StoredWeight]:
    """A folder's weights that a network is made of, all but those in `absent`, by Hugging Face's names.

    Raises:
        UserError: one is missing, has another shape, or belongs to no such model.
    """
    # A folder saved from a bare trunk (LlamaModel) has no "model." before its names.
    bare = "model.embed_tokens.weight" not in reader and "embed_tokens.weight" in reader
    used: set[str] = set()
    stored: dict[str, StoredWeight] = {}
    parts = hf_parts(network.config)
    shown, unlike, say = _shown(path), "the folder does not match its config.json", "config.json says"
    if shown is tensor_name:
        unlike, say = "the file does not match its keys", "its keys say"
    for name, parameter in network.named_parameters():
        # Part by part: a wrong one may not join with the others, or be made up for by them.
        for part, rows in parts[name] if name not in absent else ():
            shape = (rows if rows >= 0 else parameter.shape[0], *parameter.shape[1:])
            theirs = part.removeprefix("model.") if bare else part
            if theirs not in reader and theirs == "lm_head.weight":
                raise UserError(f"{path}: no {shown(theirs)}, which a policy and an LM loss (objective.lm) need")
            if theirs not in reader:
                raise UserError(f"{path}: weight {shown(theirs)} is missing: {unlike}")
            used.add(theirs)
            stored[part] = reader[theirs]
            if not stored[part].real:
                raise UserError(f"{path}: {shown(theirs)} holds {stored[part].kind}, and weights are fp16 to fp64")
            if stored[part].shape != shape:
                raise UserError(f"{path}: {shown(theirs)} has shape {stored[part].shape} where {say} {shape}")
    if network.lm and network.lm_head is None and LM_HEAD in reader:
        (embedding, _), *_ = parts[EMBEDDING]
        if not torch.equal(stored[embedding](), reader[LM_HEAD]()):
            raise UserError(
                f"{path}: lm_head.weight is not the embedding, to which config.json ties it (tie_word_embeddings): "
                "save the model with false there, an adapter's merged into it by PEFT (merge_and_unload)"
            )
    unexpected = sorted(n for n in reader if n not in used and not n.endswith(IGNORED))
    if unexpected:
        more = f" (and {len(unexpected) - 1} more)" if len(unexpected) > 1 else ""
        raise UserError(f"{path}: weight {shown(unexpected[0])}{more} is not part of a {network.config.family} model")
    return stored
