"""The reward model: decoder, final norm, M reward heads, and the language-model head for an auxiliary loss."""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmfast.kernels import rms_norm, score_head
from rmfast.models.decoder import Decoder
from rmfast.models.layers import Embedding, Linear, Norm, linear_weights


class PackInputs(Protocol):
    """What a reward model reads of a pack."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def layout(self) -> Tensor: ...
    @property
    def scored(self) -> Tensor: ...
    @property
    def lm_rows(self) -> Tensor: ...
    @property
    def lm_targets(self) -> Tensor: ...


class Outputs(NamedTuple):
    """scores fp32 [S, M]; log_prob fp32 [L] of the pack's LM targets; features fp32 [S, d], what the reward heads read;
    prototypes fp32 [K, d]. What is not computed is None."""

    scores: Tensor
    log_prob: Tensor | None = None
    features: Tensor | None = None
    prototypes: Tensor | None = None


class RewardNetwork(nn.Module):
    """Scores each response of a pack from the last layer's output at its last token.

    Args:
        decoder: the trunk.
        heads: M, the number of reward heads.
        lm: whether log-probabilities of the packs' LM targets are computed in training. With untied weights the
            network then holds a language-model head, and also where the decoder lacks the embedding.
    """

    def __init__(self, decoder: Decoder, *, heads: int = 1, lm: bool = False) -> None:
        super().__init__()
        config = decoder.config
        self.config = config
        self.decoder = decoder
        self.norm = Norm(config.width)
        self.head = Linear(config.width, heads, bias=False)
        self.lm = lm
        own_table = lm and not (config.tied and decoder.embed is not None)
        self.lm_head = decoder.factory.output(config.width, config.vocabulary) if own_table else None
        self.gives_features = False
        self.gives_log_prob = True  # False: not even where `lm` is set; the dropout drawn is the same
        self.prototypes: nn.Parameter | None = None

    def forward(self, pack: PackInputs, before: Tensor | None = None) -> Outputs:
        """What the heads give; `before` is the decoder's."""
        # Also for a pack without targets: every rank must touch the same weights.
        reads_lm = self.lm and self.training
        rows = torch.cat((pack.scored, pack.lm_rows)) if reads_lm else pack.scored
        hidden = self.decoder(pack.tokens, pack.positions, pack.layout, rows, before)
        scored = hidden[: len(pack.scored)] if reads_lm else hidden
        eps, impl = self.config.norm_eps, self.decoder.impl
        scores = score_head(scored, self.norm.weight, self.head.weight, eps=eps, impl=impl)
        features = prototypes = None
        if self.gives_features and self.training:
            wide = torch.promote_types(scored.dtype, torch.float32)
            features = rms_norm(scored.to(wide), self.norm.weight.to(wide), eps=eps, impl=impl)
            # A tensor of its own, so that whoever reads it does so within the forward pass, where it is whole.
            prototypes = None if self.prototypes is None else self.prototypes.to(wide) + 0.0
        if not (reads_lm and self.gives_log_prob):
            return Outputs(scores, None, features, prototypes)
        normed = rms_norm(hidden[len(pack.scored) :], self.norm.weight, eps=eps, impl=impl)
        log_prob = self.decoder.factory.log_prob(normed, self._table().weight, pack.lm_targets.clamp(min=0), impl)
        return Outputs(scores, log_prob, features, prototypes)

    def _table(self) -> Linear | Embedding:
        table = self.decoder.embed if self.lm_head is None else self.lm_head
        assert table is not None
        return table

    def cast_weights(self) -> list[nn.Parameter]:
        """Weights that products read in the decoder's dtype, whatever they are stored in."""
        return linear_weights(self.decoder) + (list(self._table().parameters()) if self.lm else [])

    def beside_scores(self) -> list[nn.Parameter]:
        """Weights that scores do not depend on: they have no gradient where a loss reads nothing else."""
        table = [] if self.lm_head is None else list(self.lm_head.parameters())
        return table if self.prototypes is None else [*table, self.prototypes]

    @torch.no_grad()
    def add_prototypes(self, count: int, seed: int) -> None:
        """Random directions [count, d] to cluster features by (SwAV); trained, and never part of an exported model."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 - 1)
        drawn = torch.randn(count, self.config.width, generator=generator)
        self.prototypes = nn.Parameter(F.normalize(drawn, dim=1))

    def freeze(self, top_layers: int) -> None:
        """Train only the top layers, the final norm and the reward heads; with 0 only the reward heads.

        Raises:
            ValueError: there are not that many layers.
        """
        self.requires_grad_(False)
        self.decoder.freeze(top_layers)
        self.head.requires_grad_(True)
        if top_layers:
            self.norm.requires_grad_(True)


@torch.no_grad()
def initialise(network: RewardNetwork, seed: int, names: set[str] | None = None) -> None:
    """Random weights as transformers draws them: normal matrices, norms of 1, biases of 0.

    Args:
        names: parameters to draw; default all.
    """
    for i, (name, parameter) in enumerate(network.named_parameters()):
        if names is None or name in names:
            parameter.copy_(draw(network, seed, i, name))


def draw(network: RewardNetwork, seed: int, number: int, name: str) -> Tensor:
    """fp32: a parameter's random weights, whole. Each draws from a stream of its own, so that the heads of a pretrained
    model come out as they do in one from scratch.

    Args:
        network: with all parameters; `number` is the parameter's place among them.
    """
    shape = network.get_parameter(name).shape
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randn(shape, generator=generator) * network.config.init_std
