"""Contrastive terms between two dropout views (Part II, section 3.1): SimCSE and SwAV, on pairs and on differences.

A feature is the hidden state that the reward head reads, after the final norm. Negatives and codes come from the whole
global batch; rows of a batch are items: every response (pair), or f_better - f_worse and its negative for every edge
(difference).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rmfast.kernels import info_nce, sinkhorn, swapped_prediction_loss
from rmfast.objectives.reward import EdgePack

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

    def items(self, features: Tensor, pack: EdgePack) -> tuple[Tensor, Tensor]:
        """Both views' rows [n, d] of a pack's features [2 R, d]: R responses, or E differences better - worse."""
        rows = features if self.on == "pair" else features[pack.better] - features[pack.worse]
        s, t = rows.tensor_split(2)
        return s, t

    def loss(
        self, s: Tensor, t: Tensor, prototypes: Tensor | None = None, queue: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The term without beta, a mean over the global batch's items, and figures of it.

        Args:
            s, t: [n, d], rows of the global batch in both views; on "difference" without the negatives.
            prototypes: [K, d], for "swav".
            queue: [2, Q, d], earlier items of both views.

        Returns:
            A scalar, and: items, views_cosine (mean cosine of an item's views), for "swav" codes_used (exp of the
            entropy of the mean code: from 1, all alike, to K).
        """
        s, t = self.both_signs(s), self.both_signs(t)
        figures = {"contrastive_items": torch.full((), float(len(s)), device=s.device)}
        figures["views_cosine"] = F.cosine_similarity(s.detach(), t.detach()).mean()
        if self.kind == "simcse":
            return info_nce(s, t, temperature=self.temperature, impl=self.impl), figures
        assert prototypes is not None
        codes = self.codes(s, t, prototypes, queue)
        mean = torch.cat(codes).mean(0)
        figures["codes_used"] = torch.special.entr(mean).sum().exp()
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
        """Codes [n, K] of both views' items, each from its own view's batch and queue."""
        centres = F.normalize(prototypes, dim=1)

        def of(rows: Tensor, earlier: Tensor | None) -> Tensor:
            whole = rows if earlier is None else torch.cat((rows, earlier))
            cosines = F.normalize(whole, dim=1) @ centres.T
            return sinkhorn(cosines, epsilon=self.epsilon, iterations=self.iterations, impl=self.impl)[: len(rows)]

        earlier = (None, None) if queue is None else queue
        return of(s, earlier[0]), of(t, earlier[1])


@torch.no_grad()
def feature_overlap(features: Tensor, pack: EdgePack) -> Tensor:
    """Sum over a pack's edges of the cosine of the better and the worse response's features: what the term lowers."""
    return F.cosine_similarity(features[pack.better], features[pack.worse]).sum()
