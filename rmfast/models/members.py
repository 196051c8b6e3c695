"""Models that share a trunk, embedding and lower layers, and differ above it: their top layers are computed together.

Shapes: M members, T tokens of all members' packs, S scored ones, d width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rmfast.kernels import score_head
from rmfast.models.config import DecoderConfig
from rmfast.models.decoder import Decoder, DecoderLayer
from rmfast.models.layers import linear_weights
from rmfast.models.member_layers import MemberLayers, fold
from rmfast.models.network import Network, ScoredPack


@dataclass(frozen=True, kw_only=True, eq=False)
class MemberPacks:
    """A pack of each member, laid behind each other: `counts` and `scores` are how many tokens and scored ones each
    member has, 0 where it has no pack; the tensors are a `ScoredPack`'s."""

    counts: list[int]
    scores: list[int]
    tokens: Tensor
    positions: Tensor
    layout: Tensor
    scored: Tensor

    @classmethod
    def of(cls, packs: Sequence[ScoredPack | None]) -> "MemberPacks":
        """Of each member's pack; None where it has none, but not for all."""
        some = [pack for pack in packs if pack is not None]
        starts, start = [], 0
        for pack in some:
            starts.append(start)
            start += len(pack.tokens)
        placed = list(zip(some, starts, strict=True))
        return cls(
            counts=[0 if pack is None else len(pack.tokens) for pack in packs],
            scores=[0 if pack is None else len(pack.scored) for pack in packs],
            tokens=torch.cat([pack.tokens for pack in some]),
            positions=torch.cat([pack.positions for pack in some]),
            layout=torch.cat([pack.layout + begin for pack, begin in placed], dim=1),
            scored=torch.cat([pack.scored + begin for pack, begin in placed]),
        )


class Members(nn.Module):
    """The top layers, final norm and reward head of M models, without weights.

    Parameters have the names that they have in a `Network`, and M in front of their shape.

    Args:
        top_layers: of a model, at least 1 and fewer than it has.
        options: the decoder's.
    """

    def __init__(self, config: DecoderConfig, members: int, top_layers: int, **options: Any) -> None:
        super().__init__()
        if not 0 < top_layers < config.layers:
            raise ValueError(f"top_layers must be within 1 and {config.layers - 1}, got {top_layers}")
        self.config, self.count = config, members
        factory = MemberLayers(members)
        self.shares = factory.shares
        held = range(config.layers - top_layers, config.layers)
        self.decoder = Decoder(config, factory=factory, held=held, **options)
        lowest = next(iter(self.decoder.layers))
        assert isinstance(lowest, DecoderLayer)
        if lowest.attention_norm is not None:
            fold(lowest.attention_norm, lowest.qkv)
        self.norm = factory.norm(config.width, config.norm_offset)
        self.head = factory.column(config.width, 1, bias=False)

    def forward(self, packs: MemberPacks, before: Tensor) -> list[Tensor]:
        """Scores fp32 [S, 1] of each member's pack.

        Args:
            before: [T, d], what the trunk gives for the packs' tokens.
        """
        self.shares.set(packs.counts, packs.scores)
        hidden = self.decoder(packs.tokens, packs.positions, packs.layout, packs.scored, before)
        parts = zip(hidden.split(packs.scores), self.norm.gain, self.head.weight, strict=True)
        eps, impl = self.config.norm_eps, self.decoder.impl
        return [score_head(part, norm, head, eps=eps, impl=impl) for part, norm, head in parts]

    def cast_weights(self) -> list[nn.Parameter]:
        """See `Network`."""
        return linear_weights(self.decoder)

    def member(self, number: int) -> dict[str, Tensor]:
        """Name -> weight of one member, the memory itself."""
        return {name: parameter.detach()[number] for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def begin(self, number: int, network: Network) -> None:
        """Take a member's weights from a network."""
        for name, weight in self.member(number).items():
            weight.copy_(network.get_parameter(name))


class SharedNetwork(nn.Module):
    """M models over one trunk as a network of M heads, to score with.

    Args:
        trunk: see `trunk_of`.
    """

    def __init__(self, trunk: Decoder, members: Members) -> None:
        super().__init__()
        self.trunk, self.members, self.config, self.norm = trunk, members, members.config, members.norm

    def score(self, pack: ScoredPack) -> Tensor:
        """Scores [S, M] of the pack's scored tokens; the trunk is computed once."""
        before = self.trunk(pack.tokens, pack.positions, pack.layout, pack.scored)
        count = self.members.count
        return torch.cat(self.members(MemberPacks.of([pack] * count), before.repeat(count, 1)), dim=1)


def trunk_of(network: Network, top_layers: int) -> Decoder:
    """Embedding and all but the top layers of a network, frozen, on its weights: it gives the residual stream [T, d]
    before these."""
    whole = network.decoder
    with torch.device("meta"):
        trunk = Decoder(
            whole.config,
            dtype=whole.dtype,
            impl=whole.impl,
            attention=whole.attention_impl,
            held=range(whole.config.layers - top_layers),
        )
    trunk.inv_freq = whole.inv_freq
    weights = whole.state_dict()
    trunk.load_state_dict({name: weights[name] for name in trunk.state_dict()}, assign=True)
    return trunk.requires_grad_(False).eval()
