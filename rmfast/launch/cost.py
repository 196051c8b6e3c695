"""What a step costs one GPU under a layout: bytes of memory and seconds. docs/plan.md derives every term.

Sizes: d width, q heads x head_dim, k kv_heads x head_dim, f ffn, T tokens of a pack, b bytes of an activation (2 under
bfloat16, 4 under float32).
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

from rmfast.launch.bubble import bubble
from rmfast.launch.hardware import Gpu
from rmfast.models.config import DecoderConfig
from rmfast.models.recompute import Recompute

Engine = Literal["ddp", "fsdp", "megatron"]

RESERVE = 2e9  # bytes: CUDA context, NCCL buffers, fragmentation


@dataclass(frozen=True)
class Workload:
    """A step's global batch.

    Attributes:
        tokens: computed tokens, prompts once. responses: scored tokens. pack: tokens of a pack.
        visible: pairs of a query and a key that it sees, over all tokens.
        every_token: whether the last layer's output is read at all tokens, for an LM loss.
        activation: bytes of one, 2 or 4. Weights that are trained, gradients and moments are fp32 in any case.
        adapters: weights of adapters, where these and the head are trained alone; the others are stored as activations.
    """

    tokens: int
    responses: int
    pack: int
    visible: int
    every_token: bool = False
    activation: int = 2
    adapters: int | None = None


@dataclass(frozen=True)
class Layout:
    """How ranks share a step; `world` is tensor x pipeline x data."""

    engine: Engine
    data: int
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    sequence: bool = False
    recompute: Recompute = "none"

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.data


def parameters(config: DecoderConfig) -> int:
    """Weights of a reward model: embedding, layers, norms, head; no language-model head."""
    norms = config.norm_weights
    return config.width * (config.vocabulary + 2) + config.layers * (config.layer_parameters + norms)


def _largest_stage(config: DecoderConfig, layout: Layout) -> float:
    """Weights of the rank that holds most: the first stage, which has the embedding."""
    layers = ceil(config.layers / layout.pipeline)
    return (layers * config.layer_parameters + config.vocabulary * config.width) / layout.tensor


def saved_bytes(
    config: DecoderConfig, recompute: Recompute, *, tensor: int = 1, sequence: bool = False, activation: int = 2
) -> float:
    """Bytes that one layer keeps of one token for its backward.

    none: both norms' inputs and outputs (4 d), q, k, v and attention's output (2 q + 2 k), gate and up (2 f), and
    their product (f). selective: the outputs of matmuls and attention (2 d + 2 q + 2 k + 2 f; the last one is the next
    layer's input), and the residual (d). full: the layer's input, branch and residual (2 d). Attention's log-sum-exps
    take 4 bytes a head, norms 4 bytes a row. Norms of q and k keep their inputs. Under tensor parallelism q, k
    and f are a rank's share, d too where sequence parallelism cuts it, except in outputs of matmuls: a rank's part of
    their sum has all tokens.
    """
    d = config.width / (tensor if sequence else 1)
    q, k, f = (n / tensor for n in (config.heads * config.head_dim, config.kv_heads * config.head_dim, config.ffn))
    heads = config.heads / tensor
    if recompute == "full":
        return activation * 2 * d
    if recompute == "selective":
        return activation * (2 * config.width + d + 2 * q + 2 * k + 2 * f) + 4 * heads
    normed = activation * (q + k) + 4 * (heads + config.kv_heads / tensor) if config.qk_norm else 0.0
    return activation * (4 * d + 2 * q + 2 * k + 3 * f) + 4 * heads + 8 + normed


def memory(config: DecoderConfig, layout: Layout, load: Workload) -> dict[str, float]:
    """Bytes of the fullest GPU, by what takes them.

    ddp: fp32 weights, gradients (torch's buckets where there are several ranks) and two moments, and a bf16 copy of
    what matmuls read. fsdp: all by ranks, two layers and embedding gathered, a layer's gradients whole. megatron: what
    ddp has of a rank's part of the model, the moments divided by data ranks. Under adapters (ddp, fsdp) the weights are
    stored as activations are, and the rest is of the adapters alone; their small products are not counted.
    """
    b, tokens = load.activation, min(load.pack, max(1, load.tokens // layout.data))
    packs = ceil(load.tokens / layout.data / load.pack)
    weights, layer = _largest_stage(config, layout), config.layer_parameters / layout.tensor
    table = config.vocabulary * config.width / layout.tensor
    layers = ceil(config.layers / layout.pipeline)
    flying = 1.0
    if layout.pipeline > 1:  # 1F1B: the first stage holds as many packs as there are stages, interleaved a few more
        turns = 1 + (layout.pipeline - 1) / (layout.pipeline * layout.virtual) if layout.virtual > 1 else 1.0
        flying = min(packs, layout.pipeline) * turns
    cast = b if b < 4 else 0  # fp32 weights are read as they are
    # Where an LM loss reads the table, it does so on the last stage, which is not the fullest.
    copies = cast * (layers * layer + (load.every_token and layout.pipeline == 1) * table)
    if (trained := load.adapters) is not None:
        part = layout.data if layout.engine == "fsdp" else 1
        whole = {"weights": b * weights + 4 * trained, "gradients": 4 * trained, "optimizer": 8 * trained}
        state = {name: size / part for name, size in whole.items()}
        copies = cast * trained if part == 1 else b * (2 * layer + table)
    elif layout.engine == "ddp":
        state = {"weights": 4 * weights, "gradients": 4 * weights, "optimizer": 8 * weights}
    elif layout.engine == "fsdp":
        shard = parameters(config) / layout.data
        state = {"weights": 4 * shard, "gradients": 4 * (shard + layer), "optimizer": 8 * shard}
        copies = b * (2 * layer + table)
    else:
        state = {"weights": 4 * weights, "gradients": 4 * weights, "optimizer": 8 * weights / layout.data}
    # The last layer keeps next to nothing where it computes scored tokens only (it is not the fullest stage's).
    trimmed = layout.pipeline == 1 and not load.every_token

    def saved(recompute: Recompute) -> float:
        return saved_bytes(config, recompute, tensor=layout.tensor, sequence=layout.sequence, activation=b)

    d = config.width / (layout.tensor if layout.sequence else 1)
    # A run's first layer has no residual yet; its input is no matmul's output.
    start = {"none": 0, "selective": b * d, "full": -b * d}[layout.recompute] * layout.virtual
    kept = tokens * flying * ((layers - trimmed) * saved(layout.recompute) + start)
    frozen = trained is not None  # no gradient of a matrix, nor of the embedding
    # A layer's backward at its widest: two hidden states' gradients, and those of gate and up (the product's
    # replaces the product), or later that of the largest matrix, as computed and in fp32, when the MLP keeps no more.
    f = config.ffn / layout.tensor
    working = tokens * b * 2 * d
    gathered = -cast if layout.engine == "fsdp" else 2 * cast
    largest = 0 if frozen else (8 + gathered) * f * config.width
    working += max(tokens * b * 2 * f, tokens * b * (d - 3 * f) + largest)
    if layout.recompute != "none":  # the layer's activations that are made again
        working += tokens * (saved("none") - (saved("selective") if layout.recompute == "selective" else 0))
    if layout.sequence:
        working += tokens * b * config.width  # megatron-core's buffer for a gathered stream
    # At the end of a pack's backward, when it keeps nothing any more: the embedding's gradient.
    last = 0 if frozen else (4 + (cast if layout.engine == "fsdp" else 0)) * table + 4 * tokens * d
    working = max(working, last - kept / flying)
    return state | {"copies": copies, "activations": kept, "working": working, "reserve": RESERVE}


def seconds(
    config: DecoderConfig, layout: Layout, load: Workload, gpu: Gpu, *, overlap: bool = True
) -> dict[str, float]:
    """Seconds of a step, by what takes them; nothing is taken to overlap but gradients with the last backward.

    Args:
        overlap: whether that is; CPU time, where a machine's links are its processors, hides nothing.
    """
    rank_tokens, b = load.tokens / layout.data, load.activation
    matrices = 2 * config.layers * config.layer_parameters * load.tokens
    attention = 4 * config.layers * config.heads * config.head_dim * load.visible
    passes = 4 if layout.recompute == "full" else 3
    frozen = matrices if load.adapters is not None else 0  # have no gradient
    rate = (gpu.matrix if b == 2 else gpu.single) * gpu.matrix_share
    compute = (passes * (matrices + attention) - frozen) / layout.world / rate
    # Norms (read 2 d, write 2 d, twice), RoPE and SwiGLU move bytes; their backward twice as many.
    q, k = config.heads * config.head_dim / layout.tensor, config.kv_heads * config.head_dim / layout.tensor
    d, f = config.width / (layout.tensor if layout.sequence else 1), config.ffn / layout.tensor
    moved = b * (8 * d + 2 * (q + 2 * k) + 3 * f) * rank_tokens * config.layers / layout.pipeline
    elementwise = (3 if layout.recompute == "none" else 4) * moved / gpu.bandwidth

    def link(ranks: int, stride: int = 1) -> float:
        inside = ranks * stride <= gpu.node
        return (gpu.nvlink if inside else gpu.network) * gpu.link_share

    # Two all-reduces forward and two backward a layer (each is a reduce-scatter and a gather under sequence parallel,
    # whose backward gathers both matmuls' inputs again). Recomputation repeats the first one, and both gathers.
    sums = 4 + layout.sequence + (layout.recompute != "none") * (1.5 if layout.sequence else 1)
    ring = 2 * (layout.tensor - 1) / layout.tensor
    boundary = b * rank_tokens * config.width  # bytes of the hidden states
    tensor = sums * config.layers / layout.pipeline * boundary * ring / link(layout.tensor)
    packs = max(1, ceil(rank_tokens / load.pack))
    hops = 0 if layout.pipeline == 1 else 2 * layout.virtual * boundary
    pipe = hops / (1 if not layout.sequence else layout.tensor) / link(layout.pipeline, layout.tensor * layout.data)
    waits = bubble(layout.pipeline, layout.virtual, packs) * (compute + elementwise + tensor) / packs
    weights = _largest_stage(config, layout)
    trained = weights if load.adapters is None else load.adapters
    share = (layout.data - 1) / layout.data
    # Gradients: summed once a step (ddp), scattered once (megatron) or with every pack (fsdp). Weights: gathered after
    # the step (megatron) or twice a pack (fsdp).
    sent = {"ddp": 8.0, "fsdp": 4.0 * packs, "megatron": 4.0}[layout.engine] * trained * share
    gathered = {"ddp": 0.0, "fsdp": 2 * b * packs, "megatron": 4.0}[layout.engine] * weights * share
    reduced, data = sent / link(layout.data, layout.tensor), gathered / link(layout.data, layout.tensor)
    # The second half of the last pack's backward hides gradients, except those of the last run of layers where stages
    # are interleaved; fsdp sends a layer's while it computes the next one's.
    busy = compute + elementwise
    late = reduced / layout.virtual if layout.virtual > 1 else 0.0
    hides = min(reduced + data, busy) if layout.engine == "fsdp" else min(reduced - late, busy / 3 / packs)
    hidden = hides if overlap else 0.0
    updated = trained / (1 if layout.engine == "ddp" else layout.data)
    return {
        "compute": compute, "elementwise": elementwise, "tensor": tensor, "pipeline": pipe, "bubble": waits,
        "data": reduced - hidden + data, "optimizer": 28 * updated / gpu.bandwidth,
    }  # fmt: skip
