"""Keys of one stage of task iterate: they win there alone, and a mistake in them is one line before anything runs."""

from pathlib import Path

import pytest
import yaml

from rmfast.config import load_config
from rmfast.config.stages import checked_stages
from rmfast.errors import UserError

BASE = """
task: iterate
model: {path: decoder, from_scratch: true, top_layers: 2}
data: {train: pairs.jsonl, tokens_per_pack: 512, denoise: baseline}
objective: {center: 0.01}
optim: {lr: 1.0e-4}
ppo: {prompts: p.jsonl, eval_prompts: q.jsonl, max_new_tokens: 16}
iterate:
  stages:
    sft: {data: {train: demonstrations.jsonl, columns: {ask: prompt}}}
    ppo: {optim.lr: 1.0e-6, run: {max_steps: 10}}
"""


@pytest.fixture
def base(tmp_path: Path) -> str:
    file = tmp_path / "base.yaml"
    file.write_text(BASE)
    return str(file)


def test_a_stage_takes_what_its_task_reads_and_its_keys_first(base: str, tmp_path: Path) -> None:
    config = load_config([base, "--iterate.stages.meta.meta.eta", "1e-6"])
    sft, reward, meta, ppo = checked_stages(config).values()
    assert [stage.optim.lr for stage in (sft, reward, meta, ppo)] == [1e-4, 1e-4, 1e-4, 1e-6]
    assert (sft.data.train, reward.data.train, ppo.data.train) == (("demonstrations.jsonl",), ("pairs.jsonl",), ())
    assert sft.data.columns == ("ask=prompt",)
    assert (reward.objective.center, ppo.objective.center) == (0.01, 0.0)  # which task ppo would refuse
    assert (reward.model.top_layers, ppo.model.top_layers) == (2, None)
    assert (meta.meta.eta, ppo.ppo.critic_lr, ppo.ppo.critic_warmup) == (1e-6, 3e-6, 5)
    assert [stage.model.from_scratch for stage in (sft, reward, meta, ppo)] == [True, False, False, False]
    resolved = tmp_path / "config.yaml"
    resolved.write_text(yaml.safe_dump(config.dump(), sort_keys=False))
    again = load_config([str(resolved)])
    assert again == config and checked_stages(again) == checked_stages(config)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--iterate.stages.ppo.optim.lt", "1"],
            "command line: stage ppo: optim.lt: unknown key; did you mean optim.lr?",
        ),
        (["--iterate.stages.ppo.ppo.kl", "-1"], "command line: stage ppo: ppo.kl: input should be greater than"),
        (["--ppo.max_new_tokens", "600"], "command line: stage ppo: ppo.max_new_tokens (600) leaves no room"),
        (["--iterate.stages.sft.objective.center", "1"], "command line: stage sft: objective.center is for reward"),
        (
            ["--iterate.stages.dpo.optim.lr", "1"],
            "command line: iterate.stages: input should be 'sft', 'reward', 'meta'",
        ),
        (
            ["--iterate.stages.meta.model.path", "x"],
            "command line: iterate.stages.meta.model.path is set by task iterate",
        ),
        (
            ["--iterate.stages.meta.run.threads", "2"],
            "command line: iterate.stages.meta.run.threads is of the processes",
        ),
        (
            ["--iterate.stages.meta.optim", "2"],
            "command line: iterate.stages.meta.optim names no key: it is SECTION.KEY",
        ),
        (["--ppo.reward", "x"], "command line: ppo.reward is made by the stages of task iterate"),
        (["--ppo.reference", "x"], "command line: ppo.reference is set by iterate.reference"),
        (["--meta.data", "x"], "command line: meta.data is made by the stages of task iterate"),
        (["--iterate.judge_model", "x"], "command line: iterate.judge_url and iterate.judge_model go together"),
        (["--iterate.sft", "false"], "{base}: model.from_scratch leaves nothing to begin with"),
        (
            ["--model.from_scratch", "false", "--iterate.sft", "false"],
            "{base}: iterate.stages.sft is for SFT, and iterate.sft is false",
        ),
        (["--ppo.eval_prompts=[]"], "command line: ppo.eval_prompts is missing: task iterate compares its rounds"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(base: str, words: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([base, *words])
    assert str(caught.value).startswith(line.format(base=base))
