"""Tiny models of every family, prompt groups of token ids, and what Hugging Face computes of them one by one."""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.granite.modeling_granite import GranitePreTrainedModel

from rmfast.data.pack import Pack, build_pack
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.store import TokenStore
from rmfast.data.table import GroupTable, build_table
from rmfast.models.network import Network
from rmfast.models.weights import hf_parts

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": 1,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 40, "sliding_window": 6, "tie_word_embeddings": True}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 1024}

CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama-tied-llama3": (LlamaConfig, {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "llama-biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
    ),
    "llama-yarn": (LlamaConfig, {"rope_parameters": YARN_ROPE}),
    "mistral-window": (MistralConfig, {"sliding_window": 7}),
    "mistral-full": (MistralConfig, {"sliding_window": None, "num_key_value_heads": 4}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-windows": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": (Qwen3Config, {"head_dim": 16, "num_key_value_heads": 1}),
    "qwen3-bias": (Qwen3Config, {"head_dim": 8, "attention_bias": True}),
    "qwen3-windows": (
        Qwen3Config,
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 6, "layer_types": [SLIDING, FULL, SLIDING]},
    ),
    "smollm3": (SmolLM3Config, {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 7}),
    "granite": (
        GraniteConfig,
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.4,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": (Olmo2Config, {}),
    "olmo3": (
        Olmo3Config,
        {
            "sliding_window": 6,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {SLIDING: PLAIN_ROPE, FULL: YARN_ROPE},
        },
    ),
    "gemma2": (Gemma2Config, GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": (
        Gemma3TextConfig,
        GEMMA
        | {
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {SLIDING: PLAIN_ROPE, FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}},
        },
    ),
    "phi3": (
        Phi3Config,
        {
            "sliding_window": 9,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
    "phi3-longrope": (
        Phi3Config,
        {
            "original_max_position_embeddings": 3100,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.3],
                "long_factor": [1.0, 2.0, 8.0],
            },
        },
    ),
}


class GraniteForSequenceClassification(GenericForSequenceClassification, GranitePreTrainedModel):
    """As transformers makes those of other families; it has none for Granite."""


def hf_config(name: str, **changes: Any) -> PreTrainedConfig:
    """The Hugging Face config of one of `CONFIGS`."""
    kind, options = CONFIGS[name]
    return kind(**(SIZES | {"tie_word_embeddings": False} | options | changes))


def hf_model(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A transformers reward model in fp32 whose every weight, norms and biases too, is random."""
    config = hf_config(name, **changes)
    auto = AutoModelForSequenceClassification.from_config
    make = GraniteForSequenceClassification._from_config if name == "granite" else auto
    return randomised(make(config, dtype=torch.float32), seed)


def randomised(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model whose every weight, norms and biases too, is random; in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.25 * noise if parameter.dim() > 1 else 0.2 * noise)
        for key, parameter in model.named_parameters():
            if "norm" in key and not model.config.model_type.startswith("gemma"):
                parameter.add_(1.0)
    return model.eval()


def save_hf_model(name: str, folder: Path, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """`hf_model`, also written to a folder."""
    model = hf_model(name, seed, **changes)
    model.save_pretrained(folder)
    return model


@dataclass(frozen=True)
class Group:
    """Full sequences of token ids with a prompt in common, and edges between them.

    `answer` is where each sequence's response begins; default: at their common prefix's end. Margins, targets and
    weights are one for each edge; default 0, 1 and 1/E.
    """

    sequences: list[list[int]]
    edges: tuple[tuple[int, int], ...] = ()
    answer: list[int] | None = None
    margin: list[float] | None = None
    target: list[float] | None = None
    weight: list[float] | None = None

    @property
    def prefix(self) -> int:
        """Length of the longest common prefix."""
        columns = zip(*self.sequences, strict=False)
        return next((i for i, c in enumerate(columns) if len(set(c)) > 1), min(len(s) for s in self.sequences))

    @property
    def answers(self) -> list[int]:
        return [self.prefix] * len(self.sequences) if self.answer is None else self.answer

    def chosen(self) -> list[int]:
        """Sequences that some edge prefers and none rejects."""
        return sorted({b for b, _ in self.edges} - {w for _, w in self.edges})

    def edge_values(self) -> tuple[list[float], list[float], list[float]]:
        """Margin, target and weight of each edge."""
        count = len(self.edges)
        return self.margin or [0.0] * count, self.target or [1.0] * count, self.weight or [1 / max(count, 1)] * count


def store_of(groups: Sequence[Group], bos_id: int | None = None, name: str = "tiny") -> TokenStore:
    """A token store in memory, made without rmfast's tokenisation."""
    stored = [g.sequences[0][: g.prefix] + [t for s in g.sequences for t in s[g.prefix :]] for g in groups]
    pairs = [(g.sequences[b], g.sequences[w]) for g in groups for b, w in g.edges]
    values = np.array([v for g in groups for v in zip(*g.edge_values(), strict=True)], np.float32).reshape(-1, 3)
    ends = [e for g in groups for e in g.edges]

    def starts(counts: list[int]) -> np.ndarray:
        return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)

    return TokenStore(
        tokens=np.array([t for part in stored for t in part], np.int32),
        token_start=starts([len(part) for part in stored]),
        prefix_length=np.array([g.prefix for g in groups], np.int32),
        response_start=starts([len(g.sequences) for g in groups]),
        suffix_length=np.array([len(s) - g.prefix for g in groups for s in g.sequences], np.int32),
        answer_start=np.array([a for g in groups for a in g.answers], np.int32),
        edge_start=starts([len(g.edges) for g in groups]),
        better=np.array([b for b, _ in ends], np.int32),
        worse=np.array([w for _, w in ends], np.int32),
        margin=values[:, 0],
        target=values[:, 1],
        weight=values[:, 2],
        strength_mean=np.full(len(ends), np.nan, np.float32),
        strength_std=np.full(len(ends), np.nan, np.float32),
        identical=np.array([b == w for b, w in pairs], np.bool_),
        row=np.arange(1, len(groups) + 1),
        prompt=np.array([crc32(np.array(g.sequences[0][: min(g.answers)]).tobytes()) for g in groups], np.uint64),
        meta={"source": name, "files": [[name, 0]], "bos_id": bos_id, "bad": {}, "notes": {}, "columns": {}},
    )


def table_of(groups: Sequence[Group], bos_id: int | None = None, **options: Any) -> GroupTable:
    """A table of all groups, those without edges too."""
    return build_table([store_of(groups, bos_id)], kind=RESPONSES, **options)[0]


def pack_of(groups: Sequence[Group], lm: bool = False) -> Pack:
    """All groups in one pack."""
    return build_pack(table_of(groups), np.arange(len(groups)), predicts="chosen" if lm else None)


def ids(generator: np.random.Generator, count: int) -> list[int]:
    """Random token ids, none of them a special one."""
    return generator.integers(3, VOCABULARY, count).tolist()


def group_of(
    generator: np.random.Generator, prompt: int, responses: Sequence[int], edges: Sequence[tuple[int, int]] = ()
) -> Group:
    """A random prompt and random responses of these lengths."""
    start = ids(generator, prompt)
    return Group([start + ids(generator, n) for n in responses], tuple(edges))


def odd_groups(seed: int = 0) -> list[Group]:
    """Every kind of group that is easily got wrong."""
    g = np.random.default_rng(seed)
    prompt, answer = ids(g, 6), ids(g, 4)
    tail = ids(g, 3)
    sizes = [(int(g.integers(0, 20)), g.integers(1, 12, n).tolist()) for n in range(1, 10)]
    return [
        *(group_of(g, prefix, lengths, [(0, len(lengths) - 1)] if lengths[1:] else []) for prefix, lengths in sizes),
        group_of(g, 0, [4, 9], [(1, 0)]),  # no prompt
        group_of(g, 0, [1], []),  # one token
        Group([prompt, prompt + answer], ((1, 0),)),  # an empty response
        Group([prompt + answer, prompt + answer + tail], ((0, 1),)),  # one response begins the other
        Group([prompt + answer + tail, prompt + answer, prompt + tail], ((1, 0), (1, 2), (0, 2))),
        Group([prompt + answer, prompt + answer], ((0, 1),)),  # identical
        Group([prompt + answer, prompt + tail, prompt + answer], ((0, 1), (2, 1))),
        group_of(g, 30, [1, 1, 25], [(2, 0), (2, 1)]),
    ]


def hf_scores(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Scores [N, M] of whole sequences, each run alone."""
    scores = []
    for sequence in sequences:
        hidden = model.model(torch.tensor([list(sequence)])).last_hidden_state[:, -1]
        scores.append(model.score(hidden)[0])
    return torch.stack(scores)


def hf_gradients(model: PreTrainedModel, network: Network) -> dict[str, Tensor]:
    """A transformers model's gradients by our names, joined as our weights are; those without one are left out."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    parts = hf_parts(network.config)
    names = {ours: [hf for hf, _ in parts[ours]] for ours, _ in network.named_parameters()}
    return {ours: torch.cat([grads[hf] for hf in hfs]) for ours, hfs in names.items() if hfs[0] in grads}


def assert_close_by_norm(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Same names, and |ours - theirs| <= tolerance |theirs| for each of them."""
    assert ours.keys() == theirs.keys()
    for name, truth in theirs.items():
        assert truth.norm() > 0, f"{name}: the reference's gradient is 0, which proves nothing"
        error = (ours[name].double() - truth.double()).norm() / truth.double().norm()
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


def gradients(network: Network) -> dict[str, Tensor]:
    """Gradients of those parameters that have one."""
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


class Seen(TorchDispatchMode):
    """Counts what torch's dispatcher is asked for, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Results(TorchDispatchMode):
    """Watches what torch computes: the largest result, and the bytes of results that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self._storages: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self.largest = max(self.largest, tensor.numel())
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = StorageWeakRef(storage)
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        gc.collect()  # Triton's interpreter keeps the tensors of every launch in a cycle of references

    def alive(self, besides: Iterable[Tensor] = ()) -> int:
        """Bytes of storages that appeared in results and were not freed, but for those of given tensors."""
        known, held = {tensor.untyped_storage()._cdata for tensor in besides}, 0
        for key, weak in list(self._storages.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(weak.cdata)
            if storage is None:
                del self._storages[key]
            elif key not in known:
                held += storage.nbytes()  # as it is now: FSDP2 empties storages without freeing them
        return held


class Peak(Results):
    """Also the most bytes that were alive after any operation. Kernels are launched with a GPU's choices, but not run:
    values are garbage, sizes are not.

    Args:
        besides: tensors that do not count.
    """

    def __init__(self, besides: Iterable[Tensor] = ()) -> None:
        from rmfast.kernels.launch import recording  # which imports Triton

        super().__init__()
        self.besides, self.peak = list(besides), 0
        self.unseen = False
        self._paper = recording((9, 0))

    def __enter__(self) -> Self:
        self._launches = self._paper.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._paper.__exit__(*error)

    def looking_away(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A function as it is, but what it makes does not count: gloo scatters sums by way of copies, NCCL does not."""

        def within(*arguments: Any, **options: Any) -> Any:
            self.unseen, before = True, self.unseen
            try:
                return run(*arguments, **options)
            finally:
                self.unseen = before

        return within

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.unseen:
            return func(*args, **(kwargs or {}))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._launches.clear()  # they hold tensors
        self.peak = max(self.peak, self.alive(self.besides))
        return result


def _tensors(result: Any) -> Iterator[Tensor]:
    # A DTensor is a name for its local part, which shows by itself.
    return (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and not isinstance(leaf, DTensor))
