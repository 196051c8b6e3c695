"""An exported policy has transformers' log-probabilities and samples; it stops where it did, and reshapes nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import rmfast
from rmfast.checkpoint.export import TOLERANCE, ModelParts, check_policy, publish_policy
from rmfast.checkpoint.network import holds_policy, load_checkpoint
from rmfast.cli import main
from rmfast.errors import RunError, UserError
from rmfast.models import save
from rmfast.models.config import DTYPES
from rmfast.models.weights import HEAD, PROTOTYPES
from tests.rollout.checkpoints import save_policy_checkpoint
from tests.rollout.tiny_policies import save_policy
from tests.runs import read_lines
from tests.scoring import save_reward_model

FAMILIES = ("llama", "llama-biases", "mistral-window", "qwen2", "qwen2-windows", "qwen3")
PROMPTS = ["The capital of France is", [{"role": "user", "content": "Is it wise to eat before swimming?"}]]
SEQUENCES = [[5, 9, 300, 17, 2], [40, 41, 42, 43, 44, 45, 46, 47]]
ANSWERED = ([5, 9], [300, 17, 2]), ([40], [41, 42, 43, 44, 45, 46, 47])


def publish(
    source: Path, folder: Path, *, dtype: str = "float32", shift: float = 0.0, merged: bool = False, **extra: Any
) -> rmfast.Policy:
    """Export the policy in `source`; gives it back."""
    policy = rmfast.load_policy(source, dtype=DTYPES[dtype])
    state = {name: weight.detach() for name, weight in policy.network.named_parameters()} | extra
    difference = publish_policy(
        folder,
        ModelParts(policy.hf, policy.network.config, state, policy.tokenizer, DTYPES[dtype], policy.ends, merged),
        sequences=SEQUENCES,
        log_probs=[values + shift for values in log_probs(policy)],
    )
    assert not state and difference <= (2 if merged else 1) * TOLERANCE[DTYPES[dtype]]
    return policy


def log_probs(policy: rmfast.Policy) -> list[torch.Tensor]:
    found = policy.log_prob([{"prompt": prompt, "response_ids": [answer]} for prompt, answer in ANSWERED])
    return [torch.tensor(values) for (values,) in found]


@pytest.mark.parametrize(
    ("family", "tied", "dtype"),
    [(family, i % 2 == j, dtype) for i, family in enumerate(FAMILIES) for j, dtype in enumerate(DTYPES)],
)
@torch.no_grad()
def test_transformers_generates_and_weighs_what_the_policy_does(
    tmp_path: Path, family: str, tied: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = save.split_torch_state_dict_into_shards
    monkeypatch.setattr(
        save, "split_torch_state_dict_into_shards", lambda t, **options: split(t, max_shard_size=200_000, **options)
    )
    source = save_policy(tmp_path / "source", family, tie_word_embeddings=tied)
    policy = publish(source, tmp_path / "model", dtype=dtype)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True, dtype="auto")
    assert not any(info.values()), info
    assert type(model).__name__ == json.loads((tmp_path / "model" / "config.json").read_text())["architectures"][0]
    assert model.dtype == DTYPES[dtype] and bool(model.config.tie_word_embeddings) == tied
    assert len(list((tmp_path / "model").glob("model-*-of-*.safetensors"))) > 1
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    assert ("lm_head.weight" in index) == (not tied) and "score.weight" not in index
    theirs = model.float().eval()
    exact = rmfast.load_policy(tmp_path / "model")
    for (prompt, answer), values in zip(ANSWERED, log_probs(exact), strict=True):
        logits = theirs(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1, : len(exact.tokenizer)]
        want = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        torch.testing.assert_close(values, want, rtol=1e-5, atol=1e-4)
    if dtype == "float32":
        assert exact.sample(PROMPTS, max_new_tokens=5, seed=3) == policy.sample(PROMPTS, max_new_tokens=5, seed=3)
        ((sample,),) = exact.sample(PROMPTS[:1], max_new_tokens=5, temperature=0)
        ids = torch.tensor([exact.tokenizer(PROMPTS[0])["input_ids"]])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5)
        assert out[0, ids.shape[1] :].tolist() == sample.token_ids


def test_generate_stops_where_the_policy_stops_and_nothing_reshapes_it(tmp_path: Path) -> None:
    source = save_policy(tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(source)
    other = tokenizer.convert_tokens_to_ids("<|im_end|>")
    reshaping = {"temperature": 0.6, "top_p": 0.9, "top_k": 7, "do_sample": True, "repetition_penalty": 1.3}
    stops = {"eos_token_id": [other, tokenizer.eos_token_id], "max_length": 30, "suppress_tokens": [7]}
    (source / "generation_config.json").write_text(json.dumps(reshaping | stops))
    policy = publish(source, tmp_path / "model")
    assert policy.ends >= {other, tokenizer.eos_token_id}
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    pad = json.loads((tmp_path / "model" / "config.json").read_text())["pad_token_id"]
    assert written == {"eos_token_id": sorted(policy.ends), "pad_token_id": pad} and pad not in policy.ends
    read = GenerationConfig.from_pretrained(tmp_path / "model")
    assert read.eos_token_id == sorted(policy.ends) and not read.do_sample
    assert rmfast.load_policy(tmp_path / "model").ends == policy.ends


def test_no_key_of_a_reward_model_and_no_weight_for_training_is_left(tmp_path: Path) -> None:
    source = save_policy(tmp_path / "source")
    left_over = {"problem_type": "regression", "rmfast": {"heads": "ensemble"}, "auto_map": {"AutoModel": "m.Mine"}}
    left_over |= {"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | left_over))
    publish(source, tmp_path / "model", **{PROTOTYPES: torch.zeros(3, 32), HEAD: torch.zeros(0, 32)})
    assert not left_over.keys() & json.loads((tmp_path / "model" / "config.json").read_text()).keys()
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert "lm_head.weight" in names and not {"score.weight", PROTOTYPES, HEAD} & names


@pytest.mark.parametrize("what", ["a weight", "NaN", "the head"])
def test_a_policy_that_transformers_reads_otherwise_is_refused(tmp_path: Path, what: str) -> None:
    policy = publish(save_policy(tmp_path / "source"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    if what == "the head":
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    else:
        state["model.layers.1.self_attn.o_proj.weight"][0] += 0.05 if what == "a weight" else torch.nan
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match="gives other log-probabilities of the exported policy"):
        check_policy(tmp_path / "model", SEQUENCES, log_probs(policy), torch.float32, len(policy.tokenizer))


def test_a_policy_that_is_not_the_trained_one_never_gets_its_name(tmp_path: Path) -> None:
    source = save_policy(tmp_path / "source")
    with pytest.raises(RunError, match=r"\.model\.partial: transformers gives other log-probabilities"):
        publish(source, tmp_path / "model", shift=0.1)
    assert not (tmp_path / "model").exists()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"rmfast did not write .*model, and will not remove it"):
        publish(source, tmp_path / "model")


def test_where_an_adapter_was_merged_twice_the_difference_is_allowed(tmp_path: Path) -> None:
    source = save_policy(tmp_path / "source")
    largest = max(float(values.abs().max()) for values in log_probs(rmfast.load_policy(source)))
    shift = -1.5 * TOLERANCE[torch.float32] * largest
    publish(source, tmp_path / "merged", shift=shift, merged=True)
    with pytest.raises(RunError, match="gives other log-probabilities"):
        publish(source, tmp_path / "plain", shift=shift)


def test_log_probabilities_that_are_all_near_zero_are_compared_with_those_of_a_guess(tmp_path: Path) -> None:
    """A policy that is sure of every token: a rounding error is no large share of log ids."""
    policy = publish(save_policy(tmp_path / "source"), tmp_path / "model")
    ours, ids = log_probs(policy), len(policy.tokenizer)
    largest = max(float(values.abs().max()) for values in ours)
    moved = [values + 1e-3 for values in ours]
    found = check_policy(tmp_path / "model", SEQUENCES, moved, torch.bfloat16, ids)
    assert largest > np.log(ids) and 0 < found < TOLERANCE[torch.bfloat16]
    one = [values[-1:] for values in ours]
    found = check_policy(tmp_path / "model", SEQUENCES, [v + 1e-3 for v in one], torch.float32, ids)
    assert found == pytest.approx(1e-3 / max(np.log(ids), *(abs(float(v)) for v in one)), rel=0.05)


# --- checkpoints and the command


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("source") / "model", "qwen3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """An unfinished run of a policy: its checkpoint alone."""
    folder = tmp_path_factory.mktemp("run") / "run"
    save_policy_checkpoint(folder, source)
    return folder


def test_a_run_and_its_checkpoint_are_the_policy_that_was_trained(run: Path, source: Path) -> None:
    checkpoint = run / "checkpoints" / "step-3"
    assert holds_policy(checkpoint) and not holds_policy(source)
    original = rmfast.load_policy(source)
    for path in (run, checkpoint):
        policy = rmfast.load_policy(path)
        assert policy.ends == original.ends
        assert policy.sample(PROMPTS, max_new_tokens=6) == original.sample(PROMPTS, max_new_tokens=6)
    kinds = json.loads((checkpoint / "config.json").read_text())["architectures"]
    assert kinds == ["Qwen3ForCausalLM"]


def test_the_command_exports_a_policy_and_samples_from_it(
    run: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    assert main(["export", str(run / "checkpoints" / "step-3"), "--out", str(out)]) == 0
    assert "transformers gives the same log-probabilities" in capsys.readouterr().out
    assert holds_policy(out)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    rows = []
    for path in (out, run, source):
        file = tmp_path / f"{len(rows)}.jsonl"
        command = ["sample", str(path), "--data", str(tmp_path / "prompts.jsonl"), "--out", str(file), "--n", "2"]
        assert main([*command, "--max-new-tokens", "6"]) == 0
        rows.append(read_lines(file))
    assert len(rows[0]) == 2 and rows[0] == rows[1] == rows[2]


def test_an_exported_policy_is_exported_in_another_dtype(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "one")]) == 0
    assert main(["export", str(tmp_path / "one"), "--out", str(tmp_path / "two"), "--dtype", "bfloat16"]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(two[name], one[name].bfloat16()) for name in one)


def test_a_policy_is_no_reward_model_and_a_reward_model_no_policy(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"step-3: a checkpoint of a policy, which has no reward head"):
        rmfast.load(run)
    assert main(["export", str(run), "--out", str(tmp_path / "policy")]) == 0
    with pytest.raises(UserError, match=r"policy: no reward head"):
        rmfast.load(tmp_path / "policy")
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path / "x"), "--label", "good"]) == 2
    assert capsys.readouterr().err.startswith("rmfast: --label good chooses a label of a reward model, and ")
    save_reward_model(tmp_path / "reward")
    with pytest.raises(UserError, match="reward: a reward model; a policy is a causal language model"):
        rmfast.load_policy(tmp_path / "reward")


def test_a_checkpoint_of_a_reward_run_is_no_policy(tmp_path: Path, source: Path) -> None:
    path = save_policy_checkpoint(tmp_path / "run", source, **{"head.weight": torch.ones(1, 32)})
    assert not holds_policy(path)
    with pytest.raises(UserError, match="a checkpoint of a reward model; a policy is a causal language model"):
        rmfast.load_policy(path)
    network, _ = load_checkpoint(path, dtype=torch.float32)
    assert torch.equal(network.head.weight, torch.ones(1, 32)) and network.lm_head is None
