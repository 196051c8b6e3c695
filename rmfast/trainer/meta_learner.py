"""MetaRM's step (Part II, algorithm 1), composed of a learner of pairs and a loader of prompts."""

from collections.abc import Sequence
from dataclasses import replace

from rmfast.data.loader import StepLoader
from rmfast.objectives.meta import DifferenceObjective
from rmfast.parallel.engine import ReadRows, Shard
from rmfast.trainer.batch_learner import BatchLearner, Share
from rmfast.trainer.dropout import seed_dropout
from rmfast.trainer.learner import Evaluation, Figures


class MetaLearner:
    """A step raises the difference loss J of a batch of prompts with samples, takes the gradient of the pairs' loss at
    the weights that this leads to, and applies it to the weights before.

    Args:
        prompts: with samples of a shifted distribution.
        eta, rho: the ascent; see `Engine.perturb`.
        check_every: after every so many steps J is measured behind the ascent too; None for never.
    """

    def __init__(
        self,
        pairs: BatchLearner,
        prompts: StepLoader,
        objective: DifferenceObjective,
        *,
        eta: float,
        rho: float | None,
        check_every: int | None,
    ) -> None:
        self.pairs, self.prompts, self.objective = pairs, prompts, objective
        self.eta, self.rho, self.check_every = eta, rho, check_every
        self.total, self.counters = pairs.total, pairs.counters

    def step(self, number: int) -> Figures:
        """See `Learner`."""
        engine, objective = self.pairs.engine, self.objective
        prompts = self.prompts.step(number)
        self._seed(number)
        found = engine.forward_backward(prompts.packs, objective, prompts.totals)
        figures = {"difference_loss": found.loss, "reward_difference_variance": found.sums["variance"]}
        figures["difference_grad_norm"] = engine.perturb(eta=self.eta, rho=self.rho)
        if self.check_every and number % self.check_every == 0:
            self._seed(number)  # the masks of J before
            figures["difference_loss_after"] = engine.measure(prompts.packs, objective, prompts.totals).loss
        # With the dropout of a step without an ascent.
        pairs, statistics = self.pairs.gradients(number)
        engine.restore()
        shares = [Share(self.pairs.loader, pairs), Share(self.prompts, prompts, "MetaRM's prompts")]
        return self.pairs.update(shares, replace(statistics, figures={**statistics.figures, **figures}))

    def _seed(self, number: int) -> None:
        seed_dropout(self.pairs.seed, number, self.prompts.rank, 1)

    def evaluate(self, step: int, final: bool) -> Sequence[Evaluation]:
        """See `Learner`."""
        return self.pairs.evaluate(step, final)

    def state(self) -> dict[str, Shard]:
        """See `Learner`."""
        return self.pairs.state()

    def load_state(self, read: ReadRows) -> None:
        """See `Learner`."""
        self.pairs.load_state(read)
