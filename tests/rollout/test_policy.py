"""`rmfast.load_policy`: samples and log-probabilities of texts and messages are transformers'."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import rmfast
from rmfast.errors import UserError
from rmfast.rollout import free_memory as memory
from tests.rollout.tiny_policies import save_policy
from tests.scoring import save_reward_model, token_ids

MESSAGES = [{"role": "user", "content": "Is it wise to eat before swimming?"}]
PROMPTS: list[Any] = ["The capital of France is", MESSAGES, "Once upon a time", [17, 30, 45]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy") / "model", "llama-tied-llama3")


@pytest.fixture(scope="module")
def policy(folder: Path) -> rmfast.Policy:
    return rmfast.load_policy(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    if isinstance(prompt[0], int):
        return prompt
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)


@torch.no_grad()
def log_probs(model: PreTrainedModel, ids: Sequence[int], start: int, size: int) -> np.ndarray:
    """Of each token from `start` on, over the first `size` ids."""
    logits = model(torch.tensor([list(ids)])).logits[0, start - 1 : -1, :size]
    chosen = torch.tensor(list(ids[start:]))[:, None]
    return logits.log_softmax(-1).gather(1, chosen)[:, 0].numpy()


def test_samples_have_the_log_probabilities_of_transformers(
    policy: rmfast.Policy, theirs: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer = theirs
    for prompt, samples in zip(PROMPTS, policy.sample(PROMPTS, n=3, max_new_tokens=20, seed=4), strict=True):
        before = prompt_ids(tokenizer, prompt)
        assert len(samples) == 3 and len({tuple(sample.token_ids) for sample in samples}) == 3
        for sample in samples:
            want = log_probs(model, [*before, *sample.token_ids], len(before), len(tokenizer))
            np.testing.assert_allclose(sample.log_prob, want, atol=1e-4)
            assert sample.behaviour_log_prob == pytest.approx(sample.log_prob, abs=1e-6)
            ends = sample.stop_reason == "eos"
            assert ends == (sample.token_ids[-1] == tokenizer.eos_token_id)
            assert sample.stop_reason in ("eos", "length") and (ends or len(sample.token_ids) == 20)
            assert sample.text == tokenizer.decode(sample.token_ids, skip_special_tokens=True)


def test_greedy_is_that_of_generate(
    policy: rmfast.Policy, theirs: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer = theirs
    for prompt, (sample,) in zip(PROMPTS, policy.sample(PROMPTS, max_new_tokens=12, temperature=0), strict=True):
        ids = torch.tensor([prompt_ids(tokenizer, prompt)])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        assert sample.token_ids == out[0, ids.shape[1] :].tolist()


def test_a_prompt_alone_gives_what_it_gives_in_company(policy: rmfast.Policy) -> None:
    """And equal prompts give different samples, the first of them those of one alone."""
    drawn = policy.sample([*PROMPTS, PROMPTS[0]], n=2, max_new_tokens=10)
    for i, prompt in enumerate(PROMPTS):
        (alone,) = policy.sample([prompt], n=2, max_new_tokens=10)
        assert [sample.token_ids for sample in alone] == [sample.token_ids for sample in drawn[i]]
    assert drawn[0][0].token_ids != drawn[4][0].token_ids


def test_a_stop_text_ends_a_sample_and_is_not_in_its_text(policy: rmfast.Policy) -> None:
    free = policy.sample(PROMPTS, n=2, max_new_tokens=24)
    for number, row in enumerate(free):
        for place, sample in enumerate(row):
            middle = len(sample.text) // 2
            stop = sample.text[middle : middle + 2]
            if not stop.isascii() or not stop.isalpha():
                continue
            cut = policy.sample(PROMPTS, n=2, max_new_tokens=24, stop=[stop])[number][place]
            assert cut.stop_reason == "stop" and cut.text == sample.text[: sample.text.index(stop)]
            assert cut.token_ids == sample.token_ids[: len(cut.token_ids)]
            return
    raise AssertionError("no sample with two letters in its middle")


def test_ends_are_those_of_the_generation_config_too(folder: Path, tmp_path: Path) -> None:
    """Of which nothing else is read."""
    first = rmfast.load_policy(folder).sample(PROMPTS[:1], max_new_tokens=12)[0][0].token_ids
    other = tmp_path / "model"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    ends = [2, first[5], -1, True, "x", 10**30]
    settings = {"eos_token_id": ends, "temperature": 0.1, "repetition_penalty": 3.0, "top_k": 1}
    (other / "generation_config.json").write_text(json.dumps(settings))
    policy = rmfast.load_policy(other)
    assert policy.ends == {2, first[5]}
    (sample,) = policy.sample(PROMPTS[:1], max_new_tokens=12)[0]
    assert sample.token_ids == first[: first.index(first[5]) + 1] and sample.stop_reason == "eos"
    (other / "generation_config.json").write_text("[1]")
    with pytest.raises(UserError, match="generation_config.json: not a JSON object"):
        rmfast.load_policy(other)


ROWS: list[dict[str, Any]] = [
    {"prompt": "The capital of France is", "responses": [" Paris.", " a large city in the north", ""]},
    {"prompt": MESSAGES, "responses": ["Wait an hour.", "Yes."]},
    {"prompt": "Nothing", "responses": []},
    {"prompt": "", "responses": ["A text without a prompt"]},
]


@pytest.mark.parametrize("eos", [True, False])
def test_log_prob_is_that_of_transformers(
    policy: rmfast.Policy, theirs: tuple[PreTrainedModel, PreTrainedTokenizerBase], eos: bool
) -> None:
    model, tokenizer = theirs
    found = policy.log_prob(ROWS, eos=eos)
    assert [len(row) for row in found] == [3, 2, 0, 1]
    for row, values in zip(ROWS, found, strict=True):
        for response, got in zip(row["responses"], values, strict=True):
            ids = token_ids(tokenizer, row["prompt"], response)
            before = prompt_ids(tokenizer, row["prompt"]) if row["prompt"] else []
            start = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), len(before))
            want = log_probs(model, ids, max(start, 1), len(tokenizer))
            drops = not eos and isinstance(row["prompt"], str)
            np.testing.assert_allclose(got, want[:-1] if drops else want, atol=1e-5)


@pytest.mark.parametrize("appends", [False, True])
def test_an_empty_response_has_the_figure_of_its_eos(policy: rmfast.Policy, folder: Path, appends: bool) -> None:
    """Also where the tokenizer appends the eos to every text, so to the prompt's too."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if appends:
        end = (tokenizer.eos_token, tokenizer.eos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"$A {end[0]}", special_tokens=[end])
        assert tokenizer("x")["input_ids"][-1] == tokenizer.eos_token_id
    other = rmfast.Policy(policy.network, policy.hf, tokenizer, ends=policy.ends)
    rows = [{"prompt": "x", "responses": ["", " y"]}]
    (found,), (bare,), (want,) = other.log_prob(rows), other.log_prob(rows, eos=False), policy.log_prob(rows)
    assert [len(values) for values in found] == [1, 2] and found == want
    assert bare == [[], found[1][:1]]


def test_what_was_sampled_has_its_log_probabilities(policy: rmfast.Policy) -> None:
    drawn = policy.sample(PROMPTS, n=2, max_new_tokens=9)
    rows = [
        {"prompt": prompt, "response_ids": [sample.token_ids for sample in samples]}
        for prompt, samples in zip(PROMPTS, drawn, strict=True)
    ]
    for row, samples in zip(policy.log_prob(rows), drawn, strict=True):
        for values, sample in zip(row, samples, strict=True):
            assert values == pytest.approx(sample.log_prob, abs=1e-5)


def test_ids_beyond_the_tokenizer_are_not_drawn_and_not_counted(tmp_path: Path) -> None:
    """An embedding is padded to a round size: those rows are no tokens, whatever their logits."""
    tokenizer = AutoTokenizer.from_pretrained(save_policy(tmp_path / "plain"))
    size = len(tokenizer) + 64
    folder = save_policy(tmp_path / "padded", "llama", vocab_size=size)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] *= 30.0
    model.save_pretrained(folder)
    policy = rmfast.load_policy(folder)
    (samples,) = policy.sample(["Once"], n=4, max_new_tokens=16)
    for sample in samples:
        assert max(sample.token_ids) < len(tokenizer)
        ids = [*tokenizer("Once")["input_ids"], *sample.token_ids]
        start = len(ids) - len(sample.token_ids)
        np.testing.assert_allclose(sample.log_prob, log_probs(model, ids, start, len(tokenizer)), atol=1e-4)
        (values,) = policy.log_prob([{"prompt": "Once", "response_ids": [sample.token_ids]}])[0]
        assert values == pytest.approx(sample.log_prob, abs=1e-4)


@pytest.mark.parametrize(
    "prompts, options, says",
    [
        ("one text", {}, "sample takes a list of prompts, not str"),
        ([""], {}, "prompt 0: empty: the prompt has no text"),
        (["a", 7], {}, "prompt 1: wrong type"),
        ([[]], {}, "prompt 0: empty"),
        ([[*MESSAGES, {"role": "assistant", "content": "No."}]], {}, "prompt 0: ends in an answer; leave out"),
        (["a"], {"n": 0}, "n must be a whole number of at least 1, got 0"),
        (["a"], {"top_p": 0.0}, "top_p must be above 0"),
        (["word " * 9000], {}, "prompt 0: .* tokens, and the model takes 8,192, answer included"),
    ],
)
def test_bad_calls_are_told(policy: rmfast.Policy, prompts: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        policy.sample(prompts, **options)


@pytest.mark.parametrize(
    "row, says",
    [
        ({"prompt": "a", "responses": ["b"], "response_ids": [[3]]}, "row 0: holds responses and response_ids"),
        ({"prompt": "a", "response_ids": [[]]}, "row 0: response_ids must be lists of token ids, none of them empty"),
        ({"prompt": "a", "response_ids": [[3.7]]}, "row 0: response_ids must be lists of token ids"),
        ({"prompt": "a", "response_ids": [["3"], [None]]}, "row 0: response_ids must be lists of token ids"),
        ({"prompt": "a", "response_ids": None}, "row 0: response_ids must be lists of token ids"),
        ({"prompt": "a", "response_ids": [["b"]]}, "row 0: response_ids must be lists of token ids"),
        ({"prompt": "a", "response_ids": [[10**6]]}, "row 0: wrong type: a token id outside"),
        ({"prompt": "a"}, "row 0: missing column"),
        ("text", "row 0: not a mapping but str"),
    ],
)
def test_bad_rows_are_told(policy: rmfast.Policy, row: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        policy.log_prob([row])


def test_ids_may_be_arrays(policy: rmfast.Policy) -> None:
    ids = np.array([5, 6, 7])
    (want,), *others = policy.sample([[5, 6, 7], ids, torch.from_numpy(ids)], max_new_tokens=3, temperature=0)
    assert others == [[want]] * 2
    row = {"prompt": ids, "response_ids": [np.array(want.token_ids)]}
    assert policy.log_prob([row])[0][0] == pytest.approx(want.log_prob, abs=1e-4)


@pytest.mark.parametrize("sizes", [{"rows": 0}, {"tokens_per_pack": 2.5}])
def test_sizes_that_hold_nothing_are_told(folder: Path, sizes: dict[str, Any]) -> None:
    ((name, value),) = sizes.items()
    with pytest.raises(UserError, match=f"{name} must be a whole number of at least 1, got {value}"):
        rmfast.load_policy(folder, **sizes)


@pytest.mark.parametrize("load", [rmfast.load_policy, rmfast.load])
@pytest.mark.parametrize(
    "given, says",
    [
        ({"device": "nope"}, "device nope: models run on cpu or cuda (cuda:1 for the second GPU)"),
        ({"device": None}, "device None: models run on cpu or cuda (cuda:1 for the second GPU)"),
        ({"device": "meta"}, "device meta: models run on cpu or cuda (cuda:1 for the second GPU)"),
        ({"dtype": "bf16"}, "dtype must be torch.float32, torch.bfloat16, torch.float16 or torch.float64, got 'bf16'"),
        (
            {"dtype": torch.int8},
            "dtype must be torch.float32, torch.bfloat16, torch.float16 or torch.float64, got torch.int8",
        ),
    ],
)
def test_no_device_and_no_dtype_are_one_line(load: Any, given: dict[str, Any], says: str, tmp_path: Path) -> None:
    """Before anything is read."""
    with pytest.raises(UserError) as error:
        load(tmp_path, **given)
    assert str(error.value) == says


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_here_is_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match="^device cuda: .*CUDA"):
        rmfast.load_policy(folder, device="cuda")


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       9000 kB\nMemAvailable:   8000 kB\n")
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    assert memory.free_memory(torch.device("cpu")) == 8000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, free in (("max", 8000 * 1024), ("6000", 5000), ("900", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert memory.free_memory(torch.device("cpu")) == free
    (tmp_path / "memory.max").unlink()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_memory(torch.device("cpu")) == 2000 * 1024


def test_what_torch_keeps_of_an_earlier_pool_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (30, 80)), ("memory_reserved", 45), ("memory_allocated", 5)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_memory(torch.device("cuda")) == 70


def test_a_reward_model_is_no_policy(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "reward")
    with pytest.raises(UserError) as error:
        rmfast.load_policy(folder)
    assert str(error.value) == f"{folder}: a reward model; a policy is a causal language model"


def test_messages_need_a_template(folder: Path, tmp_path: Path) -> None:
    other = save_policy(tmp_path / "plain")
    (other / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        rmfast.load_policy(other).sample([MESSAGES])
