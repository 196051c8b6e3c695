"""A decoder, the final norm and named heads: M reward heads and the language model's; the caller says what is read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmfast.kernels import rms_norm, score_head
from rmfast.kernels.linear_log_prob.products import TableProduct
from rmfast.models.copies import cast
from rmfast.models.decoder import Decoder, Memory
from rmfast.models.layers import Embedding, Linear, Norm, linear_weights, narrow


class PackInputs(Protocol):
    """What a network computes hidden states of."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def layout(self) -> Tensor: ...


class ScoredPack(PackInputs, Protocol):
    """A pack with tokens [S] that are scored."""

    @property
    def scored(self) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Reads:
    """What is read of a pack. The last layer computes no other rows.

    Args:
        scores: int64 [S], the tokens that the reward heads read.
        log_prob: int64 [L], tokens, and int64 [L], the token that each predicts (a target of -1 predicts nothing); with
            None for the targets their hidden states are computed and not read, which draws the same dropout.
        features: what the reward heads read is given too.
        ids: log-probabilities are over the first so many ids of the vocabulary; None for all.
        temperature: logits are divided by it.
        entropy: those of the distributions that the targets are predicted from are given too.
    """

    scores: Tensor
    log_prob: tuple[Tensor, Tensor | None] | None = None
    features: bool = False
    ids: int | None = None
    temperature: float = 1.0
    entropy: bool = False

    @property
    def rows(self) -> Tensor:
        """All tokens that are read, those of the scores first."""
        return self.scores if self.log_prob is None else torch.cat((self.scores, self.log_prob[0]))

    def without_targets(self) -> "Reads":
        """The same rows, but no log-probabilities."""
        return self if self.log_prob is None else replace(self, log_prob=(self.log_prob[0], None))


class Outputs(NamedTuple):
    """scores fp32 [S, M]; log_prob fp32 [L] of the targets; features fp32 [S, d], what the reward heads read;
    prototypes fp32 [K, d], beside features; entropy fp32 [L], beside log_prob. What is not asked for is None."""

    scores: Tensor
    log_prob: Tensor | None = None
    features: Tensor | None = None
    prototypes: Tensor | None = None
    entropy: Tensor | None = None


Product = Callable[[Tensor, Tensor, torch.dtype], Tensor]
"""Logits of hidden states and a table, in a dtype; see `TableProduct`."""


class NextLogits(Protocol):
    """What follows some tokens; see `Network.logits`. Of layers before the last, the residual stream after them."""

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        memory: Memory,
        rows: Tensor,
        product: Product | None = None,
        before: Tensor | None = None,
    ) -> Tensor: ...


class Network(nn.Module):
    """A decoder with its heads: M reward heads, and the language model's where log-probabilities are read.

    Args:
        decoder: the trunk.
        heads: M; 0 for a language model, which has no `head`.
        lm: whether log-probabilities are read. With untied weights the network then holds a language-model head, and
            also where the decoder lacks the embedding.

    Attributes:
        adapter: the decoder's adapter that it computes with; None for the trunk itself. Networks may share a decoder,
            each with another adapter.
    """

    def __init__(self, decoder: Decoder, *, heads: int = 1, lm: bool = False) -> None:
        super().__init__()
        config = decoder.config
        self.config = config
        self.decoder = decoder
        self.norm = Norm(config.width, config.norm_offset)
        self.head = Linear(config.width, heads, bias=False) if heads else None
        self.lm = lm
        untied = lm and not (config.tied and decoder.embed is not None)
        self.lm_head = decoder.factory.output(config.width, config.vocabulary) if untied else None
        self.prototypes: nn.Parameter | None = None
        self.adapter: str | None = None

    def forward(self, pack: PackInputs, reads: Reads, before: Tensor | None = None) -> Outputs:
        """What is read; `before` is the decoder's."""
        hidden = self.decoder(pack.tokens, pack.positions, pack.layout, reads.rows, before, self.adapter)
        scored = hidden if reads.log_prob is None else hidden[: len(reads.scores)]
        eps, impl = self.config.norm_eps, self.decoder.impl
        wide = torch.promote_types(scored.dtype, torch.float32)
        if self.head is None:
            scores = scored.new_empty(len(scored), 0, dtype=wide)
        else:
            scores = score_head(scored, self.norm.gain, self.head.weight, eps=eps, impl=impl)
        features = prototypes = log_prob = entropy = None
        if reads.features:
            features = rms_norm(scored.to(wide), self.norm.gain.to(wide), eps=eps, impl=impl)
            # A new tensor, so that whoever reads it does so within the forward pass, where it is whole.
            prototypes = None if self.prototypes is None else self.prototypes.to(wide) + 0.0
        if reads.log_prob is not None and (targets := reads.log_prob[1]) is not None:
            normed = rms_norm(hidden[len(reads.scores) :], self.norm.gain, eps=eps, impl=impl)
            table, target, cap = self._table().weight, targets.clamp(min=0), self.config.logit_cap
            log_prob, entropy = self.decoder.factory.log_prob(
                normed,
                table,
                target,
                ids=reads.ids,
                temperature=reads.temperature * self.config.logit_divisor,
                softcap=cap,
                impl=impl if cap is None else "reference",  # no kernel has a soft cap on logits
            )
        return Outputs(scores, log_prob, features, prototypes, entropy if reads.entropy else None)

    def score(self, pack: ScoredPack) -> Tensor:
        """Scores [S, M] of the pack's scored tokens."""
        scores: Tensor = self(pack, Reads(scores=pack.scored)).scores
        return scores

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
        """fp32 [S, V] (fp64 of an fp64 model): logits of the tokens that follow `rows`; of a sharded vocabulary this
        rank's part. Arguments are the decoder's; `product` is of calls between which no weight changes."""
        hidden = self.decoder(tokens, positions, memory, rows, before, self.adapter)
        normed = rms_norm(hidden, self.norm.gain, eps=self.config.norm_eps, impl=self.decoder.impl)
        table = cast(self._table().weight, normed.dtype)
        logits = (product or TableProduct())(normed, table, torch.promote_types(normed.dtype, torch.float32))
        divisor, cap = self.config.logit_divisor, self.config.logit_cap
        logits = logits if divisor == 1.0 else logits.div_(divisor)
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _table(self) -> Linear | Embedding:
        table = self.decoder.embed if self.lm_head is None else self.lm_head
        assert table is not None
        return table

    def beside(self, *, heads: int = 0, lm: bool = False, adapter: str | None = None) -> "Network":
        """Another network over the same decoder and final norm, whose reward heads are new and have no values yet.

        Args:
            adapter: the decoder's that it computes with; None for the trunk itself.
        """
        with torch.device("meta"):
            network = Network(self.decoder, heads=heads, lm=lm)
        network.norm, network.adapter = self.norm, adapter
        network.lm_head = self.lm_head if lm else None
        if network.head is not None:
            network.head.to_empty(device=self.norm.weight.device)
        return network

    def parts(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and weights, but those of adapters that it does not compute with."""
        for name, parameter in self.named_parameters():
            _, mark, inner = name.partition(".adapters.")
            if not mark or inner.partition(".")[0] == self.adapter:
                yield name, parameter

    def cast_weights(self) -> list[nn.Parameter]:
        """Weights that products read in the decoder's dtype, whatever they are stored in."""
        read = {id(weight) for weight in linear_weights(self.decoder)}
        read |= {id(weight) for weight in self._table().parameters()} if self.lm else set()
        return [weight for _, weight in self.parts() if id(weight) in read]

    def unread(self, reads: Reads) -> list[nn.Parameter]:
        """Weights of heads that are not read: a step that reads nothing else has no gradient of them."""
        heads: list[nn.Parameter] = []
        if self.lm_head is not None and reads.log_prob is None:
            heads += self.lm_head.parameters()
        if self.prototypes is not None and not reads.features:
            heads.append(self.prototypes)
        return heads

    @torch.no_grad()
    def add_prototypes(self, count: int, seed: int) -> None:
        """Random directions [count, d] to cluster features by (SwAV); trained, and never part of an exported model."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 - 1)
        drawn = torch.randn(count, self.config.width, generator=generator)
        self.prototypes = nn.Parameter(F.normalize(drawn, dim=1))

    def freeze(self, top_layers: int) -> None:
        """Train only the top layers, the final norm and the reward heads; with 0 only the reward heads, if any.

        Raises:
            ValueError: there are not that many layers.
        """
        self.requires_grad_(False)
        self.decoder.freeze(top_layers)
        if self.head is not None:
            self.head.requires_grad_(True)
        if top_layers:
            self.norm.requires_grad_(True)

    def narrow(self) -> "Network":
        """This network, frozen, with all that is read in the decoder's dtype stored in it: every weight but those of
        norms and reward heads. What it computes keeps its bits."""
        narrow(self, self.decoder.dtype, self.head)
        return self


@torch.no_grad()
def initialise(network: Network, seed: int, names: set[str] | None = None) -> None:
    """Random weights as transformers draws them: normal matrices, norms that multiply by 1, biases of 0.

    Args:
        names: parameters to draw; default all.
    """
    for i, (name, parameter) in enumerate(network.parts()):
        if names is None or name in names:
            parameter.copy_(draw(network, seed, i, name))


def draw(network: Network, seed: int, number: int, name: str) -> Tensor:
    """fp32: a parameter's random weights, whole. Each draws from a separate stream, so that the heads of a pretrained
    model come out as they do in one from scratch.

    Args:
        network: with all parameters; `number` is the parameter's place among them.
    """
    shape = network.get_parameter(name).shape
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0 - network.config.norm_offset)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randn(shape, generator=generator) * network.config.init_std
