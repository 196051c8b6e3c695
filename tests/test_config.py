"""Configs: files and overrides merge, every kind of wrong input gives one line, the resolved config repeats itself."""

from pathlib import Path

import pytest
import yaml

from rmfast.config import Config, config_help, known_keys, load_config
from rmfast.errors import UserError

KEYS = """
task
run: dir seed epochs max_steps resume log_every tensorboard wandb threads
model: path dtype from_scratch heads top_layers adapter lora_rank lora_alpha lora_targets lora_dropout lora_rslora
    dropout recompute kernels attention
data: train eval train_weights max_length over_long bad_rows pairs_per_step tokens_per_pack shuffle columns
    chat_template template_date cache workers denoise
denoise: flip drop drop_below margin margin_scale margin_min margin_max smooth smooth_slice soft_temperature
    weight_temperature
optim: lr schedule warmup floor betas eps weight_decay clip backend on_nonfinite max_skipped
objective: center lm contrastive on beta views temperature prototypes epsilon iterations queue freeze_prototypes
eval: every at_start suites suites_every
checkpoint: every keep
parallel: engine data tensor pipeline virtual pipeline_split sequence cuda_graphs timeout_minutes lock_minutes
meta: data k prompts_per_step eta rho normaliser check_every
sft: turns
ensemble: members folds mode state_memory spread ranks_per_member part
ppo: preset reward reward_rule reward_k reference critic critic_warmup critic_lr prompts eval_prompts
    prompts_per_step samples minibatches epochs advantage kl kl_in kl_estimator kl_target kl_horizon gamma lam clip
    clip_high value_clip reward_norm reward_clip reward_warmup whiten entropy max_new_tokens temperature
    top_p top_k min_p repetition_penalty truncated truncated_score overlong_buffer overlong_penalty
    ptx ptx_data ptx_rows offload gold stop_kl stop_entropy stop_cut
rollout: rows memory
iterate: rounds sft reward policy reference control prompts temperature answers judge_url judge_model stages
"""
"""Every key by section. A new one is added here with a reader in the code and a test of what it does."""

BASE = {"model": {"path": "decoder"}, "data": {"train": "train.jsonl"}}


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write(tmp_path / "base.yaml", yaml.safe_dump(BASE))


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_later_files_and_the_command_line_win(base: str, tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", "optim: {lr: 1e-3, clip: 0.5}\nrun: {seed: 1}\n")
    second = write(tmp_path / "second.yaml", "optim:\n  lr: 2.0e-3\n  warmup: 10\nobjective:\n")
    config = load_config([base, first, second, "--optim.warmup", "5", "--run.seed=3", "--run.seed", "4"])
    assert (config.optim.clip, config.optim.lr, config.optim.warmup, config.run.seed) == (0.5, 2e-3, 5.0, 4)
    assert load_config([base, second, first]).optim.lr == 1e-3  # PyYAML reads 1e-3 as text


def test_the_key_on_is_a_word(base: str, tmp_path: Path) -> None:
    """PyYAML takes a bare `on` for true."""
    file = write(tmp_path / "on.yaml", "objective:\n  contrastive: simcse\n  on: difference\n")
    assert load_config([base, file]).objective.on == "difference"


def test_a_date_is_text_whether_yaml_takes_it_for_a_date_or_not(base: str, tmp_path: Path) -> None:
    assert load_config([base]).data.template_date == "2024-07-26"
    bare = write(tmp_path / "date.yaml", "data:\n  template_date: 2025-01-05\n")
    for words in ([bare], ["--data.template_date", "2025-01-05"]):
        assert load_config([base, *words]).data.template_date == "2025-01-05"


def test_overrides_alone_are_enough_and_may_hold_lists_and_null() -> None:
    words = ["--model.path", "d", "--data.train", "a.jsonl", "b.jsonl", "--run.max_steps", "null"]
    words += ["--data.train_weights", "1", "0.5"]
    config = load_config(words)
    assert config.data.train == ("a.jsonl", "b.jsonl")
    assert config.data.train_weights == (1.0, 0.5)
    assert config.run.max_steps is None
    assert load_config([*words, "--data.train", "one.jsonl", "--data.train_weights", "2"]).data.train == ("one.jsonl",)


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("optim: {lrr: 1}", "optim.lrr", "did you mean optim.lr?"),
        ("modle: {path: x}", "modle", "unknown key"),
        ("optim: {lr: fast}", "optim.lr", "got 'fast'"),
        ("optim: {lr: -1}", "optim.lr", "greater than 0"),
        ("optim: {lr: .nan}", "optim.lr", "finite"),
        ("optim: {lr: true}", "optim.lr", "true or false"),
        ("run: {seed: yes}", "run.seed", "true or false"),
        ("run: {seed: 1.5}", "run.seed", "got 1.5"),
        ("run: {tensorboard: perhaps}", "run.tensorboard", "got 'perhaps'"),
        ("run: {dir: null}", "run.dir", "got None"),
        ("run: {max_steps: 0}", "run.max_steps", "got 0"),
        ("model: {dropout: 1}", "model.dropout", "less than 1"),
        ("optim: {schedule: cosin}", "optim.schedule", "'cosine'"),
        ("optim: {betas: [0.9]}", "optim.betas", "too few values"),
        ("optim: {betas: [0.9, 0.9, 0.9]}", "optim.betas", "got"),
        ("data: {train: []}", "data.train", "missing; set it in the file or with --data.train"),
        ("data: {train: {a: b}}", "data.train", "not a section"),
        ("optim: 3", "optim", "section"),
        ("optim: [1, 2]", "optim", "section"),
        ("data: {tokens_per_pack: 64, max_length: 65}", "data.tokens_per_pack", "data.max_length (65)"),
        ("data: {train_weights: [1, 2]}", "data.train_weights", "2 numbers for 1 sources"),
        ("data: {train_weights: [0]}", "data.train_weights", "one must be positive"),
        ("objective: {lm: 1}\nmodel: {top_layers: 0}", "objective.lm", "model.top_layers is 0"),
        ("model: {lora_rank: 8}", "model.lora_rank", "belongs to model.adapter lora"),
        ("model: {lora_targets: q_proj}", "model.lora_targets", "belongs to model.adapter lora"),
        ("model: {adapter: lora, lora_targets: [q]}", "model.lora_targets", "'q_proj'"),
        ("model: {adapter: lora, lora_targets: []}", "model.lora_targets", "at least 1 item"),
        ("model: {adapter: lora, top_layers: 1}", "model.top_layers", "model.adapter lora trains adapters"),
        ("model: {adapter: lora, from_scratch: true}", "model.from_scratch", "no trained weights to adapt"),
        ("task: ensemble\nmodel: {adapter: lora}\nensemble: {mode: heads}", "model.adapter", "trains nothing in"),
        ("eval: {every: 5}", "eval.every", "data.eval is empty"),
        ("parallel: {cuda_graphs: true, data: fsdp}", "parallel.cuda_graphs", "parallel.data ddp"),
        ("parallel: {cuda_graphs: true}\nmodel: {recompute: full}", "parallel.cuda_graphs", "recompute none"),
        ("parallel: {cuda_graphs: true}\nmodel: {attention: flash}", "parallel.cuda_graphs", "reads lengths"),
        ("parallel: {cuda_graphs: true}\nobjective: {contrastive: swav}", "parallel.cuda_graphs", "no contrastive"),
        ("objective: {contrastive: simcse}\nmodel: {top_layers: 0}", "objective.contrastive", "trains nothing"),
        ("objective: {contrastive: simcse, queue: 8}", "objective.queue", "belongs to objective.contrastive swav"),
        *(
            (f"objective: {{contrastive: simcse, {option}}}", f"objective.{option.split(':')[0]}", "contrastive swav")
            for option in ("prototypes: 9", "epsilon: 0.1", "iterations: 4", "freeze_prototypes: 1")
        ),
        *(
            (f"objective: {{{option}}}", f"objective.{option.split(':')[0]}", "belongs to objective.contrastive s")
            for option in ("beta: 0", "views: response", "temperature: 0.1", "queue: 1", "epsilon: 1")
        ),
        ("objective: {'on': difference}", "objective.on", "belongs to objective.contrastive simcse or swav"),
        ("data: {template_date: 26.07.2024}", "data.template_date", "is a date such as 2024-07-26, got '26.07.2024'"),
        ("data: {template_date: null}", "data.template_date", "is a date such as 2024-07-26, got 'None'"),
        ("meta: {eta: 0.1, rho: 0.1}", "meta.eta", "beside meta.rho"),
        (
            "data: {max_length: 40, tokens_per_pack: 79}\nobjective: {contrastive: swav}",
            "data.tokens_per_pack",
            "(79) is below twice data.max_length (40)",
        ),
        ("data: {tokens_per_pack: 3}\nobjective: {contrastive: swav}", "data.tokens_per_pack", "is below twice"),
    ],
)
def test_a_wrong_value_is_one_line_with_key_and_file(base: str, tmp_path: Path, text: str, key: str, hint: str) -> None:
    wrong = write(tmp_path / "wrong.yaml", text)
    with pytest.raises(UserError) as caught:
        load_config([base, wrong])
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{wrong}: {key}")
    assert hint in line


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--optim.lr", "fast"], "command line: optim.lr"),
        (["--optim.lrr", "1"], "command line: optim.lrr: unknown key; did you mean optim.lr?"),
        (["--optim", "3"], "command line: optim is a section"),
        (["--run.dir.name", "x"], "command line: run.dir"),
        (["--optim.lr"], "--optim.lr needs a value"),
        (["--run.seed", "--run.dir", "x"], "--run.seed needs a value"),
        (["--=3"], "command line"),
        (["--..", "3"], "command line"),
        (["--task", "rewards"], "command line: task"),
    ],
)
def test_a_wrong_argument_names_the_command_line(base: str, arguments: list[str], hint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([base, *arguments])
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"optim: {lr: 1", ":1: not valid YAML"),
        (b"a: b\n\tc: d", ":2: not valid YAML"),
        (b"- 1\n- 2\n", "a mapping of sections, not list"),
        (b"", "a mapping of sections, not NoneType"),
        (b"run: {dir: \xff}", "not UTF-8"),
        (b"run: !!python/object:os.system {}", "not valid YAML"),
        (b"run: {dir: \x00}", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config([str(path)])
    assert str(caught.value).startswith(str(path))
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot read the config: No such file"):
        load_config([str(tmp_path / "nowhere.yaml")])
    with pytest.raises(UserError, match="cannot read the config"):
        load_config([str(tmp_path)])
    with pytest.raises(UserError, match=r"data\.train: missing; set it in the file or with --data\.train"):
        load_config(["--model.path", "x"])
    with pytest.raises(UserError, match="no config given"):
        load_config([])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--data.tokens_per_pack", "512"],
        ["--data.train", "a.jsonl", "b.jsonl", "--optim.lr", "3e-7", "--run.max_steps", "7", "--model.heads", "2"],
        ["--objective.contrastive", "swav", "--data.tokens_per_pack", "513"],
        ["--objective.contrastive", "simcse", "--objective.views", "response", "--data.tokens_per_pack", "512"],
        ["--objective.contrastive", "none", "--objective.on", "pair", "--objective.epsilon", "0.05"],
        ["--meta.rho", "0.1", "--meta.eta", "5e-6"],
        ["--run.dir", "007", "--data.chat_template", "{{ messages }}: '#'", "--optim.betas", "0.8", "0.95"],
    ],
    ids=["defaults", "small pack", "numbers", "two views", "cheap views", "no term", "rho", "odd text"],
)
def test_the_resolved_config_alone_means_the_same(base: str, tmp_path: Path, words: list[str]) -> None:
    config = load_config([base, *words])
    resolved = write(tmp_path / "config.yaml", yaml.safe_dump(config.dump(), sort_keys=False))
    again = load_config([resolved])
    assert again == config
    flat = {f"{section}.{key}" for section, keys in config.dump().items() if isinstance(keys, dict) for key in keys}
    assert flat | {"task"} == set(known_keys())  # nothing is left to a default that may change


def test_the_default_length_gives_way_to_a_smaller_pack(base: str) -> None:
    assert load_config([base]).data.max_length == 1024
    assert load_config([base, "--data.tokens_per_pack", "512"]).data.max_length == 512
    assert load_config([base, "--data.tokens_per_pack", "2048"]).data.max_length == 1024


def test_the_default_length_gives_way_to_two_views(base: str) -> None:
    views = [base, "--objective.contrastive", "simcse", "--data.tokens_per_pack"]
    assert load_config([*views, "2048"]).data.max_length == 1024
    assert load_config([*views, "513"]).data.max_length == 256
    # The prompt may be nearly all of a sequence, and is there once.
    assert load_config([*views, "513", "--objective.views", "response"]).data.max_length == 513
    assert load_config([*views, "80", "--data.max_length", "40"]).data.max_length == 40


def test_a_misspelt_required_key_is_named_before_it_is_missed(tmp_path: Path) -> None:
    wrong = write(tmp_path / "wrong.yaml", "model: {pth: decoder}\n")
    with pytest.raises(UserError, match=r"wrong\.yaml: model\.pth: unknown key; did you mean model\.path\?"):
        load_config([wrong])


def test_the_keys_are_frozen() -> None:
    """None is added, renamed or lost without this list."""
    keys, section = ["task"], ""
    for word in KEYS.split()[1:]:
        if word.endswith(":"):
            section = word.removesuffix(":")
        else:
            keys.append(f"{section}.{word}")
    assert known_keys() == keys


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("data: {max_length: 20000}", [], "data.tokens_per_pack (16384) is below data.max_length (20000)"),
        ("denoise: {flip: 0.1}", ["--task", "ensemble"], "data.denoise and denoise.* go by strengths"),
        ("denoise: {margin_max: 1}", [], "denoise.margin_max does nothing without denoise.margin mean"),
        ("meta: {rho: 1, eta: 2}", ["--task", "meta", "--meta.data", "x"], "meta.eta does nothing beside meta.rho"),
    ],
)
def test_a_clash_names_the_file_that_set_a_key_of_it(
    base: str, tmp_path: Path, text: str, words: list[str], line: str
) -> None:
    """The key that the line begins with may have its default."""
    wrong = write(tmp_path / "wrong.yaml", text)
    with pytest.raises(UserError) as caught:
        load_config([base, wrong, *words, "--run.seed", "1"])
    assert str(caught.value).startswith(f"{wrong}: {line}")


def test_only_the_section_of_the_named_task_is_checked(base: str) -> None:
    assert load_config([base, "--ensemble.folds", "20"]).ensemble.folds == 20
    with pytest.raises(UserError, match=r"command line: ensemble\.folds \(20\) is above ensemble\.members \(10\)"):
        load_config([base, "--ensemble.folds", "20", "--task", "ensemble"])
    with pytest.raises(UserError, match=r"config: meta\.data is missing"):
        load_config([base, "--task", "meta"])


def test_configs_are_frozen() -> None:
    config = Config.model_validate(BASE)
    with pytest.raises(ValueError, match="frozen"):
        config.optim.lr = 1.0


def test_help_lists_every_key_with_its_meaning() -> None:
    text = config_help()
    for key in known_keys():
        assert f"  --{key}  " in text
    assert "--model.path  str  (required)" in text
    assert '--optim.schedule  [linear, cosine, inverse_sqrt, constant]  (default "linear")' in text
    lines = text.splitlines()
    assert len(lines) == 2 * len(known_keys())
    assert all(line.strip() for line in lines)
