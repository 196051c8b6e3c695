"""The contrastive term of a step: features of every rank's packs together, and what each feature's gradient is.

The term is a function of the whole global batch's features. Every rank gathers them and computes it whole, so that the
gradient of the rank's features is exact without a second collective. Where a rank has more than one pack, a first pass
without gradients collects the features, with the dropout that the second one repeats (GradCache, Gao et al. 2021).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rmfast.data.pack import Pack
from rmfast.objectives.base import FeatureGradients
from rmfast.objectives.contrastive import ContrastiveObjective, feature_overlap, upload
from rmfast.parallel.world import World


class Contrast:
    """Computes the term (a `BatchTerm`) and keeps the queue of earlier items.

    Args:
        width: of a feature.
        world: the ranks that share the groups of a batch.
    """

    def __init__(self, objective: ContrastiveObjective, width: int, world: World) -> None:
        self.objective, self.world = objective, world
        self.queue = torch.zeros(2, objective.queue, width, device=world.device)
        self._filled = torch.zeros(1, dtype=torch.int64)  # items of the queue; known on the host
        self._stored: _Stored | None = None  # of the last step, while the queue is not full

    def __call__(
        self,
        features: Sequence[Tensor],
        packs: Sequence[Pack],
        inputs: Sequence[Pack],
        prototypes: Tensor | None,
        steps: Tensor,
    ) -> FeatureGradients:
        """See `BatchTerm`; features are those of both views, [2 R, d]."""
        leaves = [f.detach().requires_grad_() for f in features]
        centres = None if prototypes is None else prototypes.detach().requires_grad_()
        with torch.enable_grad():
            # A pack without work scores a token that ends no response.
            real = [leaf[: 2 * len(pack.responses)] for leaf, pack in zip(leaves, packs, strict=True)]
            items = [self.objective.items(rows, pack) for rows, pack in zip(real, packs, strict=True)]
            keys = torch.cat([self._keys(pack) for pack in packs])
            s, t = self._gather(torch.stack([torch.cat([pair[view] for pair in items]) for view in (0, 1)]), keys)
            queue = self.queue[:, : self.filled] if self.filled else None
            term, figures = self.objective.loss(s, t, centres, queue)
            loss = self.objective.beta * term
            wanted = [*leaves, *([] if centres is None else [centres])]
            grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        self._remember(s.detach(), t.detach())
        overlaps = [feature_overlap(f, pack) for f, pack in zip(features, inputs, strict=True)]
        weighing = [(pack.edges.weight > 0).sum().to(overlaps[0].dtype) for pack in inputs]
        overlap, edges = self.world.sum_(torch.stack((torch.stack(overlaps).sum(), torch.stack(weighing).sum())))
        figures |= {"contrastive_loss": term.detach(), "feature_overlap": overlap / edges.clamp(min=1)}
        of_prototypes = None
        if centres is not None:
            # Each rank has the whole gradient, and ranks' gradients are summed: the first one's counts.
            of_prototypes = grads[-1] * (steps >= self.objective.freeze) * float(self.world.rank == 0)
        return FeatureGradients(loss.detach(), list(grads[: len(leaves)]), of_prototypes, figures)

    def _keys(self, pack: Pack) -> Tensor:
        """int64 [n] on the CPU: by these, the rows of all packs come into the data's order."""
        numbers, chosen = torch.from_numpy(pack.responses), self.objective.chosen(pack)
        return numbers[chosen if self.objective.on == "pair" else pack.edges.better[chosen]]

    def _gather(self, rows_here: Tensor, keys: Tensor) -> Tensor:
        """[2, n, d] of all ranks; this rank's rows carry gradients. Their order is the data's, whatever the ranks.

        Args:
            keys: int64 [n], on the CPU, so that nobody waits for the device.
        """
        if self.world.size > 1:
            counts = torch.zeros(self.world.size, dtype=torch.int64)
            counts[self.world.rank] = len(keys)
            rows = self.world.sum_(counts).tolist()
            keys = torch.cat(self._all(keys[:, None], rows))[:, 0]
            kept = [part.transpose(0, 1) for part in self._all(rows_here.detach().transpose(0, 1), rows)]
            kept[self.world.rank] = rows_here
            rows_here = torch.cat(kept, 1)
        return rows_here[:, upload(keys.argsort(stable=True), rows_here.device)]

    def _all(self, rows_here: Tensor, rows: Sequence[int]) -> list[Tensor]:
        """Every rank's rows."""
        padded = rows_here.new_zeros(max(rows), *rows_here.shape[1:])
        padded[: len(rows_here)] = rows_here
        return [part[:count] for part, count in zip(self.world.gather(padded), rows, strict=True)]

    def _remember(self, s: Tensor, t: Tensor) -> None:
        """The newest items first; a batch that is not finite leaves the queue as it was."""
        size = self.queue.shape[1]
        if not size:
            return
        both = torch.stack([self.objective.both_signs(rows) for rows in (s, t)])[:, :size]
        moved = torch.cat((both, self.queue), 1)[:, :size]
        finite = both.isfinite().all()
        self.queue.copy_(torch.where(finite, moved, self.queue))
        if self.filled < size:
            self._stored = _Stored(both.shape[1], finite)

    @property
    def filled(self) -> int:
        """Items that the queue holds. Whether the last batch was stored is read here, a step after it was computed."""
        if self._stored is not None:
            self._filled.add_(self._stored.read()).clamp_(max=self.queue.shape[1])
            self._stored = None
        return int(self._filled)

    def state(self) -> dict[str, Tensor]:
        """See `BatchTerm`."""
        if not self.objective.queue:
            return {}
        _ = self.filled  # up to date
        return {"queue": self.queue, "queue_filled": self._filled}


class _Stored:
    """How many items a batch brought to the queue: all, or none where it was not finite.

    The device's answer is fetched beside its work: who reads it a step later waits for nothing that is still to run.
    """

    def __init__(self, count: int, finite: Tensor) -> None:
        self._count, self._finite = count, finite.to("cpu", non_blocking=True)
        self._fetched: torch.cuda.Event | None = None
        if finite.is_cuda:
            self._fetched = torch.cuda.Event()
            self._fetched.record()

    def read(self) -> int:
        if self._fetched is not None:
            self._fetched.synchronize()
        return self._count if bool(self._finite) else 0
