"""What megatron-core's schedules drive: a run of layers, the first with the embedding, the last with the heads."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import make_viewless_tensor
from torch import Tensor, nn

from rmfast.data.pack import Pack
from rmfast.models.config import DecoderConfig
from rmfast.models.decoder import Decoder, Memory
from rmfast.models.layers import linear_weights, narrow
from rmfast.models.lora import ADAPTER, add_adapter
from rmfast.models.low_rank import LoraOptions
from rmfast.models.network import Network, Outputs, Product, Reads
from rmfast.models.weights import EMBEDDING, LM_HEAD
from rmfast.parallel.engine import Held
from rmfast.parallel.megatron.groups import Groups
from rmfast.parallel.megatron.layers import TensorParallel, tag
from rmfast.parallel.megatron.place import vocabulary_share


class Trunk(nn.Module):
    """Layers without heads; see `Network`."""

    head = None

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.adapter: str | None = None

    def forward(self, pack: Pack, reads: Reads, before: Tensor | None = None) -> Tensor:
        return self.decoder(pack.tokens, pack.positions, pack.layout, reads.rows, before, self.adapter)

    @torch.no_grad()
    def logits(
        self,
        tokens: Tensor,
        positions: Tensor,
        memory: Memory,
        rows: Tensor,
        product: Product | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """The residual stream [T, d]; see `NextLogits`."""
        stream: Tensor = self.decoder(tokens, positions, memory, rows, before, self.adapter)
        return stream

    def narrow(self) -> None:
        """See `Network.narrow`."""
        narrow(self, self.decoder.dtype, None)

    def freeze(self, top_layers: int) -> None:
        """See `Network.freeze`."""
        self.decoder.freeze(top_layers)

    def cast_weights(self) -> list[nn.Parameter]:
        """See `Network.cast_weights`."""
        return linear_weights(self.decoder)


class _NoGradientBefore(torch.autograd.Function):
    """A result that does not depend on `before`, with a gradient of 0 for it: schedules send a gradient to the stage
    before whether or not that one needs it."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, before: Tensor) -> Tensor:
        ctx.save_for_backward(before)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (before,) = ctx.saved_tensors
        return gradient, torch.zeros_like(before)


class Stage(nn.Module):
    """A part of a reward network, with what the schedules read of it.

    Args:
        network: a `Network` where the part holds the model's last layer, else a `Trunk`.
        config: megatron-core's.
        number: 0 for the model's first layers, 1 for those after them, ...; `chunk` counts those of this rank.
    """

    def __init__(self, network: Network | Trunk, config: TransformerConfig, *, number: int, chunk: int | None) -> None:
        super().__init__()
        self.network, self.config, self.number = network, config, number
        self.model_type = ModelType.encoder_or_decoder
        self.vp_stage = chunk
        self.pre_process = network.decoder.embed is not None
        self.post_process = isinstance(network, Network)
        self.share_embeddings_and_output_weights = False
        self._before: Tensor | None = None

    def set_input_tensor(self, tensors: Any) -> None:
        """The residual stream [T, 1, d] from the stage before, in a list; [None] in the first."""
        before = tensors[0] if isinstance(tensors, list) else tensors
        self._before = None if before is None else before[:, 0]

    @contextlib.contextmanager
    def whole_streams(self) -> Iterator[None]:
        """Within it tensor ranks have the residual stream whole each, also under sequence parallelism: of one token a
        row there is little to share."""
        factory = self.network.decoder.factory
        if not isinstance(factory, TensorParallel):
            yield
            return
        before, factory.sequence = factory.sequence, False
        try:
            yield
        finally:
            factory.sequence = before

    @property
    def drops(self) -> bool:
        """Whether dropout is drawn in training."""
        decoder = self.network.decoder
        return decoder.dropout > 0 or any(options.dropout for options in decoder.adapters.options.values())

    def shared_embedding_or_output_weight(self) -> nn.Parameter:
        """The embedding, or the last stage's copy of it."""
        if self.network.decoder.embed is not None:
            return self.network.decoder.embed.weight
        assert isinstance(self.network, Network) and self.network.lm_head is not None
        return self.network.lm_head.weight

    def forward(self, pack: Pack, reads: Reads) -> Outputs | Tensor:
        """The heads' outputs, or the residual stream [T, 1, d] for the next stage."""
        before, self._before = self._before, None
        out = self.network(pack, reads, None if self.pre_process else before)
        decoder = self.network.decoder
        cut = before is not None and before.requires_grad and decoder.held[0] < decoder.first_trained
        if isinstance(out, Outputs):
            return out._replace(scores=_NoGradientBefore.apply(out.scores, before)) if cut else out
        out = _NoGradientBefore.apply(out, before) if cut else out
        return make_viewless_tensor(out[:, None], requires_grad=out.requires_grad, keep_graph=True)

    def weights(self) -> dict[str, nn.Parameter]:
        """Parameters by the names that they have in the whole model; a copy of the embedding has the embedding's."""
        copies = self.share_embeddings_and_output_weights
        return {EMBEDDING if n == LM_HEAD and copies else n: p for n, p in self.network.named_parameters()}


def held_model(stages: Sequence[Stage], groups: Groups) -> Held:
    """What this rank's stages are to sampling."""
    decoder, end = stages[0].network.decoder, stages[-1].network
    config, tensor = decoder.config, groups.tensor
    share = vocabulary_share(config.vocabulary, tensor.size)
    return Held(
        runs=tuple(stage.network.logits for stage in stages),
        layers=tuple(layer for stage in stages for layer in stage.network.decoder.held),
        config=config,
        dtype=decoder.dtype,
        kv_heads=config.kv_heads // tensor.size,
        width=share if isinstance(end, Network) else 0,
        first=share * tensor.rank,
        tensor=tensor if tensor.size > 1 else None,
        pipeline=groups.pipeline if groups.pipeline.size > 1 else None,
        around=groups.around,
    )


def tag_tied(stages: Sequence[Stage]) -> None:
    """Mark an embedding that the first stage shares with the last."""
    for stage in stages:
        if not stage.share_embeddings_and_output_weights or not (stage.pre_process or stage.post_process):
            continue
        weight = tag(stage.shared_embedding_or_output_weight(), "shared_embedding")
        if not stage.pre_process:
            tag(weight, "copy_of_embedding")


def build_stages(
    config: DecoderConfig,
    groups: Groups,
    *,
    heads: int,
    lm: bool,
    top_layers: int | None,
    prototypes: tuple[int, int] | None,
    adapter: LoraOptions | None = None,
    adapter_name: str = ADAPTER,
    frozen: bool = False,
    **options: Any,
) -> list[Stage]:
    """This rank's stages, on its device, without weights but for prototypes.

    Args:
        top_layers: see `Network.freeze`; None trains all.
        prototypes: their number and seed.
        adapter: that is trained, and its name, see `adapt`. frozen: nothing is.
        options: of `Decoder`.

    Raises:
        ValueError: there are not that many layers.
    """
    layout, device = groups.layout, groups.world.device
    settings = megatron_config(config, groups, options["dtype"])
    factory = TensorParallel(groups.tensor, sequence=layout.sequence) if layout.tensor > 1 else None
    stages = []
    for chunk, held in enumerate(layout.held(config.layers, groups.pipeline.rank)):
        with torch.device("meta"):
            decoder = Decoder(config, factory=factory, held=held, **options)
            last = config.layers - 1 in held
            network = Network(decoder, heads=heads, lm=lm) if last else Trunk(decoder)
            if frozen:
                network.narrow()
            if adapter is not None:
                add_adapter(network, adapter, adapter_name)
        tags = [vars(parameter) for parameter in network.parameters()]
        network.to_empty(device=device)
        for parameter, old_tags in zip(network.parameters(), tags, strict=True):  # these are new ones
            vars(parameter).update(old_tags)
        decoder.inv_freq = decoder.frequencies(device)
        if top_layers is not None:
            network.freeze(top_layers)
        if isinstance(network, Network) and prototypes is not None:
            network.add_prototypes(*prototypes)
            network.to(device)
        stage = Stage(
            network,
            settings,
            number=chunk * layout.pipeline + groups.pipeline.rank,
            chunk=chunk if layout.virtual > 1 else None,
        )
        stage.share_embeddings_and_output_weights = lm and config.tied and layout.pipeline > 1
        stages.append(stage)
    return stages


def megatron_config(config: DecoderConfig, groups: Groups, dtype: torch.dtype) -> TransformerConfig:
    """What megatron-core must know of a model and its layout."""
    layout = groups.layout
    pipelined, interleaved = layout.pipeline > 1, layout.virtual > 1
    return TransformerConfig(
        num_layers=config.layers,
        hidden_size=config.width,
        num_attention_heads=config.heads,
        num_query_groups=config.kv_heads,
        kv_channels=config.head_dim,
        ffn_hidden_size=config.ffn,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual if interleaved else None,
        sequence_parallel=layout.sequence,
        pipeline_dtype=dtype,
        params_dtype=torch.float32,
        variable_seq_lengths=pipelined,
        moe_token_dispatcher_type="alltoall",  # which variable lengths ask for, also of a model without experts
        calculate_per_token_loss=True,  # a loss is a share of the global batch's: nothing divides it again
        # The interleaved schedule frees a stage's output while it may still be on its way.
        deallocate_pipeline_outputs=pipelined and not interleaved,
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        batch_p2p_sync=False,  # for older versions of torch
        # apex's fused kernel would add a weight's gradient to the `main_grad` of the tensor that was multiplied with.
        # Here that is a copy in `dtype` of an fp32 master, and the master's gradient has to pass through autograd: its
        # hook tells when a bucket is full, and the last layer's few rows are multiplied outside megatron-core's op.
        gradient_accumulation_fusion=False,
        perform_initialization=False,
    )
