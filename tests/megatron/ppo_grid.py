"""PPO under the megatron engine's layouts against one native process: the same runs, and how far they are apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.megatron.grid import LAYOUTS, weights_apart
from tests.ppo import tiny
from tests.runs import read_lines

BASE: dict[str, object] = {"optim__lr": 1e-3, "eval__every": "null", "parallel__timeout_minutes": 2}
KINDS: dict[str, dict[str, object]] = {
    "ppo_max": {"ppo__reward": ("reward", "other"), "ppo__reward_rule": "worst", "ppo__gold": "other"},
    "rloo": {"ppo__preset": "ppo", "ppo__advantage": "rloo", "ppo__critic_warmup": 0, "ppo__kl_in": "loss"},
    "lora": {"model__adapter": "lora", "model__lora_rank": 2, "ppo__critic": "policy"},
}
SAME = ("loss", "grad_norm", "critic_grad_norm", "loss/value_avg", "objective/kl", "mean_reward", "reward_mean")


def command(folder: Path, kind: str, run: str, layout: str | None = None, **more: object) -> list[str]:
    """A run of a kind under a layout; None: native."""
    keys = BASE | KINDS[kind]
    for key in {"ppo__reward", "ppo__gold"} & keys.keys():
        value = keys[key]
        keys[key] = tuple(folder / name for name in value) if isinstance(value, tuple) else folder / str(value)
    if layout is not None:
        keys |= {"parallel__engine": "megatron"} | LAYOUTS[layout][1]
    return tiny.command(folder, run, **keys | more)


def differing(run: Path, truth: Path) -> list[tuple[str, int, int, int]]:
    """Samples whose tokens differ: file, prompt, answer, and the place of the first token that does."""
    ours, theirs = tiny.drawn_of(run), tiny.drawn_of(truth)
    assert ours.keys() == theirs.keys() and ours
    found = []
    for file, prompts in theirs.items():
        for p, answers in enumerate(prompts):
            for a, ids in enumerate(answers):
                if (other := ours[file][p][a]) != ids:
                    pairs = list(zip(ids, other, strict=False))
                    place = next((i for i, (x, y) in enumerate(pairs) if x != y), len(pairs))
                    found.append((file, p, a, place))
    return found


def apart(run: Path, truth: Path) -> dict[str, float]:
    """The largest differences of a run: absolute of losses and figures, relative of weights by norm."""
    lines = list(zip(*(read_lines(path / "metrics.jsonl") for path in (run, truth)), strict=True))
    out = {name: _furthest(lines, name) for name in SAME if any(name in one for _, one in lines)}
    out["weights"] = weights_apart(run, truth)["all"]
    if (truth / "critic").is_dir():
        out["critic weights"] = weights_apart(run, truth, tiny.critic_of)["all"]
    return out


def _furthest(lines: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], name: str) -> float:
    assert all((name in many) == (name in one) for many, one in lines), name
    scale = {"grad_norm": True, "critic_grad_norm": True}.get(name, False)
    return max(abs(many[name] - one[name]) / (one[name] if scale else 1.0) for many, one in lines if name in one)
