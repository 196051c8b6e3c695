"""Contrastive terms between two dropout views (Part II, section 3.1): SimCSE and SwAV, on pairs and on differences.

A feature is the hidden state that the reward head reads, after the final norm. Negatives and codes come from the whole
global batch; rows of a batch are items: every response that an edge compares (pair), or f_better - f_worse and its
negative for every edge (difference). Edges of weight 0 count for nothing here, as in the ranking loss.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rmfast.kernels import info_nce, sinkhorn, swapped_prediction_loss
from rmfast.objectives.base import EdgePack

Kind = Literal["simcse", "swav"]
On = Literal["pair", "difference"]

BETA = {("simcse", "pair"): 1.0, ("simcse", "difference"): 1.0, ("swav", "pair"): 0.1, ("swav", "difference"): 0.5}
"""The paper's weights of the term (appendix B.2); that of SimCSE on differences is not listed there: ours."""
PROTOTYPES = {"pair": 50, "difference": 20}
"""The paper's numbers of prototypes."""
TEMPERATURE = {"simcse": 0.05, "swav": 0.1}
"""Not given in the paper: the defaults of SimCSE and SwAV (ours)."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveObjective:
    """beta times InfoNCE between the views (equation 9), or the swapped prediction loss (equations 7 and 8).

    Args:
        kind: "simcse" or "swav". on: "pair" or "difference".
        beta: weight of the term beside the ranking loss.
        temperature: of the softmax.
        epsilon, iterations: of the codes (Sinkhorn).
        queue: earlier items from which codes are made too, where a batch has fewer items than prototypes; 0 for none.
        freeze: steps for which prototypes are left as they were drawn.
        impl: of the kernels.
    """

    kind: Kind
    on: On
    beta: float
    temperature: float
    epsilon: float = 0.05
    iterations: int = 3
    queue: int = 0
    freeze: int = 0
    impl: str = "auto"

    def chosen(self, pack: EdgePack) -> Tensor:
        """int64 [n], ascending: which of a pack's R responses (pair) or E edges (difference) are items.

        Args:
            pack: with both views, on the CPU: how many rows there are must be known without waiting for the device.
        """
        edges = len(pack.edges.weight) // 2  # of the first view
        weighing = (pack.edges.weight[:edges] > 0).nonzero()[:, 0]
        if self.on == "difference":
            return weighing
        return torch.cat((pack.edges.better[weighing], pack.edges.worse[weighing])).unique()

    def items(self, features: Tensor, pack: EdgePack) -> tuple[Tensor, Tensor]:
        """Both views' rows [n, d] of a pack's features [2 R, d]; the pack as for `chosen`."""
        rows = self.chosen(pack)
        s, t = features.tensor_split(2)
        if self.on == "pair":
            rows = upload(rows, features.device)
            return s[rows], t[rows]
        better, worse = (upload(side[rows], features.device) for side in (pack.edges.better, pack.edges.worse))
        return s[better] - s[worse], t[better] - t[worse]

    def loss(
        self, s: Tensor, t: Tensor, prototypes: Tensor | None = None, queue: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The term without beta, a mean over the global batch's items, and figures of it.

        Args:
            s, t: [n, d], rows of the global batch in both views; on "difference" without the negatives.
            prototypes: [K, d], for "swav".
            queue: [2, Q, d], earlier items of both views.

        Returns:
            A scalar, and: items, views_cosine (mean cosine of an item's views), for "swav" codes_used (see there).
        """
        s, t = self.both_signs(s), self.both_signs(t)
        figures = {"contrastive_items": torch.full((), float(len(s)), device=s.device)}
        figures["views_cosine"] = F.cosine_similarity(s.detach(), t.detach()).sum() / max(len(s), 1)
        if self.kind == "simcse":
            return info_nce(s, t, temperature=self.temperature, impl=self.impl), figures
        assert prototypes is not None
        codes = self.codes(s, t, prototypes, queue)
        figures["codes_used"] = codes_used(torch.cat((s, t)), prototypes)
        options = {"epsilon": self.epsilon, "iterations": self.iterations, "impl": self.impl}
        loss = swapped_prediction_loss(
            s,
            t,
            prototypes,
            temperature=self.temperature,
            codes=codes,
            **options,  # type: ignore[arg-type]
        )
        return loss, figures

    def both_signs(self, rows: Tensor) -> Tensor:
        """The items that rows stand for: [2 n, d] with the negatives for differences."""
        return torch.cat((rows, -rows)) if self.on == "difference" else rows

    @torch.no_grad()
    def codes(self, s: Tensor, t: Tensor, prototypes: Tensor, queue: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes [n, K] of both views' items, each from its view's batch and queue."""
        centres = F.normalize(prototypes, dim=1)

        def of(rows: Tensor, earlier: Tensor | None) -> Tensor:
            whole = rows if earlier is None else torch.cat((rows, earlier))
            cosines = F.normalize(whole, dim=1) @ centres.T
            return sinkhorn(cosines, epsilon=self.epsilon, iterations=self.iterations, impl=self.impl)[: len(rows)]

        earlier = (None, None) if queue is None else queue
        return of(s, earlier[0]), of(t, earlier[1])


@torch.no_grad()
def codes_used(rows: Tensor, prototypes: Tensor) -> Tensor:
    """exp of the entropy of how many rows [n, d] have each prototype [K, d] as their nearest: 1 where all share one, K
    where all have as many. Not of the codes, which Sinkhorn spreads over all prototypes whatever the rows."""
    nearest = (rows @ F.normalize(prototypes, dim=1).T).argmax(1)
    counts = torch.zeros_like(prototypes[:, 0]).scatter_add_(0, nearest, torch.ones_like(rows[:, 0]))
    return torch.special.entr(counts / max(len(rows), 1)).sum().exp()


@torch.no_grad()
def feature_overlap(features: Tensor, pack: EdgePack) -> Tensor:
    """Sum, over a pack's edges that weigh something, of the cosine of the better and the worse response's features:
    what the term lowers."""
    cosines = F.cosine_similarity(features[pack.edges.better], features[pack.edges.worse])
    return cosines.where(torch.as_tensor(pack.edges.weight > 0), 0.0).sum()


def upload(index: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; the copy waits for nothing that runs there."""
    return index if device.type == "cpu" else index.pin_memory().to(device, non_blocking=True)
