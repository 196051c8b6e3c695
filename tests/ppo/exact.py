"""All answers of a small vocabulary, and what is exactly true of policies over them: KL, objective, known optima.

fp64 throughout. A **policy** is its steps: after each of the n^d histories of d letters (every token but the eos is a
letter, n of them) the log-probabilities of the V = n + 1 next tokens, [n^d, V], for d = 0 .. longest - 1. A
distribution over the A answers is a vector [A]: those that ended by the eos, by length, then those that were cut.

**Known optima** for rewards R(y) of whole answers and a coefficient beta:

- *KL in the reward.* The objective is J(pi) = E[R] - beta KL(pi || ref) over answers: a token's advantage contains the
  KL of the tokens that follow. Its optimum is pi*(y) = ref(y) exp(R(y) / beta) / Z, where J = beta log Z.
- *KL in the loss.* At each state s that is visited the gradient is that of E_a[Q(s, a)] - beta KL(pi(.|s) || ref(.|s)),
  where Q(s, a) is the expected R under the policy and contains no KL: a token gets no credit for the KL of those that
  follow. It vanishes where pi(a|s) = ref(a|s) exp(Q(s, a) / beta) / Z(s), and as Q of a state depends on what follows
  it alone, this is found from the last token back. The value of a state is then E_a[Q], where the closed form has
  beta log Z(s) = E_a[Q] - beta KL(s). The two are the same where answers have one token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

Steps = tuple[Tensor, ...]


@dataclass(frozen=True)
class Answers:
    """All answers of at most `longest` tokens over ids 0 .. vocabulary - 1, of which `eos` ends one."""

    vocabulary: int
    eos: int
    longest: int

    @cached_property
    def letters(self) -> list[int]:
        """int [n]: the ids that end nothing."""
        return [token for token in range(self.vocabulary) if token != self.eos]

    @cached_property
    def ids(self) -> list[tuple[int, ...]]:
        """[A]: the token ids of each answer, its eos among them."""
        ended = [(*h, self.eos) for d in range(self.longest) for h in product(self.letters, repeat=d)]
        return [*ended, *product(self.letters, repeat=self.longest)]

    @cached_property
    def cut(self) -> Tensor:
        """bool [A]: whether an answer was cut."""
        return torch.tensor([answer[-1] != self.eos for answer in self.ids])

    @cached_property
    def lengths(self) -> Tensor:
        """int64 [A]: tokens of an answer."""
        return torch.tensor([len(answer) for answer in self.ids])

    def log_prob(self, steps: Steps) -> Tensor:
        """[A]: log pi(y), differentiable."""
        reached, ended = torch.zeros(1, dtype=torch.float64), []
        for step in steps:
            ended.append(reached + step[:, self.eos])
            reached = (reached[:, None] + step[:, self.letters]).reshape(-1)
        return torch.cat([*ended, reached])

    def fold(self, leaves: Tensor, value: Callable[[Tensor, int], Tensor]) -> Steps:
        """For every state, what its next tokens lead to, [n^d, V] for each d, from values of answers [A].

        Args:
            value: of states: from what their next tokens lead to, and d, to [n^d].
        """
        count = len(self.letters)
        *ended, follows = leaves.split([count**d for d in range(self.longest)] + [count**self.longest])
        found: list[Tensor] = []
        for d in reversed(range(self.longest)):
            leads = torch.empty(count**d, self.vocabulary, dtype=torch.float64)
            leads[:, self.letters], leads[:, self.eos] = follows.reshape(-1, count), ended[d]
            follows = value(leads, d)
            found.append(leads)
        return tuple(reversed(found))

    def steps(self, log_prob: Tensor) -> Steps:
        """The policy with a distribution over answers [A]."""
        found = self.fold(log_prob, lambda leads, _: leads.logsumexp(1))
        return tuple(leads.log_softmax(1) for leads in found)


def kl(log_prob: Tensor, reference: Tensor) -> Tensor:
    """KL(pi || ref) of distributions over answers."""
    return (log_prob.exp() * (log_prob - reference)).sum()


def objective(log_prob: Tensor, reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J(pi) = E[R] - beta KL(pi || ref)."""
    return (log_prob.exp() * rewards).sum() - beta * kl(log_prob, reference)


def optimum(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """[A]: log pi* of KL in the reward, the closed form."""
    return (reference + rewards / beta).log_softmax(0)


def possible_gain(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J(pi*) - J(ref) = beta log Z - E_ref[R]."""
    return beta * (reference + rewards / beta).logsumexp(0) - (reference.exp() * rewards).sum()


def loss_optimum(answers: Answers, reference: Steps, rewards: Tensor, beta: float) -> Tensor:
    """[A]: log pi at the fixed point of KL in the loss."""

    def policy(leads: Tensor, d: int) -> Tensor:
        return (reference[d] + leads / beta).log_softmax(1)

    found = answers.fold(rewards, lambda leads, d: (policy(leads, d).exp() * leads).sum(1))
    return answers.log_prob(tuple(policy(leads, d) for d, leads in enumerate(found)))


def total_variation(log_prob: Tensor, other: Tensor) -> float:
    """Half the sum of |pi(y) - pi'(y)|."""
    return 0.5 * float((log_prob.exp() - other.exp()).abs().sum())


def trained_for(answers: Answers, raw: Tensor, *, truncated_score: float = 0.0) -> Tensor:
    """[A]: what answers are trained for under ppo.truncated `zero` (the default) and `penalty`, of raw scores."""
    return torch.where(answers.cut, truncated_score, raw.double())


def read_steps(model: torch.nn.Module, prompt: Sequence[int], answers: Answers, *, temperature: float = 1.0) -> Steps:
    """The policy that a causal language model of transformers is after a prompt.

    Raises:
        ValueError: the model's vocabulary is another than that of the answers, so that they are not all there are.
    """
    head = model.get_output_embeddings().weight
    if len(head) != answers.vocabulary:
        raise ValueError(f"read_steps: {len(head)} ids in the model, {answers.vocabulary} in the answers")
    return head_steps(read_hidden(model, prompt, answers), head, temperature=temperature)


@torch.no_grad()
def head_steps(hidden: Sequence[Tensor], head: Tensor, *, temperature: float = 1.0) -> Steps:
    """The policy of a head [V, width] on hidden states [n^d, width] for each d."""
    return tuple((level.double() @ head.T.double() / temperature).log_softmax(1) for level in hidden)


@torch.no_grad()
def read_hidden(model: torch.nn.Module, prompt: Sequence[int], answers: Answers) -> list[Tensor]:
    """For each d, what the model's head reads after a prompt and each history of d letters, [n^d, width]."""
    found = []
    for d in range(answers.longest):
        histories = [[*prompt, *history] for history in product(answers.letters, repeat=d)]
        found.append(model.model(torch.tensor(histories)).last_hidden_state[:, -1])
    return found
