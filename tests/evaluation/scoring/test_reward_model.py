"""rmfast.load(...).score equals plain transformers, one sequence at a time, whatever is scored with what."""

import json
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer

import rmfast
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reward_model import RewardModel
from rmfast.train import main
from tests.runs import DECODER, arguments, write_model, write_rows
from tests.scoring import assert_same_scores, save_reward_model, token_ids, transformers_scores
from tests.tiny import save_hf_model

SCRIPTS = (
    "hello world def f(x): ",
    "Grüß dich schöne ",
    "世界你好 ",
    "नमस्ते दुनिया ",
    "مرحبا بالعالم ",
    "🙂👩‍👩‍👧‍👦 ",
    "Привет мир ",
    "\n\t  \r\n",
    "<|im_end|>",
    "<|pad|>",
)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wer bist du? 🙂"}]
LONG_TOKENS = 1500
Rows = Sequence[Mapping[str, Any]]


def mixed_rows() -> list[dict[str, Any]]:
    """Every kind of row that is easily got wrong; the last one is long."""
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        return "".join(draw.choice(SCRIPTS) for _ in range(draw.randint(low, high)))

    turns = [*MESSAGES, {"role": "assistant", "content": "A."}, {"role": "user", "content": text(2, 4)}]
    odd: list[dict[str, Any]] = [
        {"prompt": "", "responses": ["a", "a b", "a"]},  # no prompt; identical; one begins another
        {"prompt": "", "responses": [""]},  # nothing but the eos
        {"prompt": "x", "responses": ["", "y", ""]},
        {"prompt": "Hel", "responses": ["lo", "lo<|im_end|>", "lo there", "p"]},  # tokens merge; eos in the text
        {"prompt": "same", "responses": [" again"] * 3},
        {"prompt": "The answer", "responses": [" is 4", " is 4 or 5", " is 4 or 5, or 6", " is"]},
        {"prompt": MESSAGES, "responses": ["hm", "hm hm", "", text(1, 5)]},
        {"prompt": turns, "responses": [[{"role": "assistant", "content": t}] for t in ("ja", "nein", text(1, 9))]},
    ]
    counts: list[dict[str, Any]] = [
        {"prompt": text(0, 20), "responses": [text(1, 12) for _ in range(n)]} for n in range(1, 10)
    ]
    return [*counts, *odd, {"prompt": text(270, 270), "responses": [text(3, 3), text(40, 40)]}]


ROWS = mixed_rows()
FAMILIES = {
    "llama": "llama-tied-llama3",
    "mistral": "mistral-window",  # a window of 7 tokens
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward-model") / "llama")


@pytest.fixture(scope="module")
def model(folder: Path) -> RewardModel:
    return rmfast.load(folder)


@pytest.fixture(scope="module")
def scores(model: RewardModel) -> list[list[float]]:
    return model.score(ROWS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scores_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    folder = save_reward_model(tmp_path / family, FAMILIES[family], seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(token_ids(tokenizer, ROWS[-1]["prompt"], ROWS[-1]["responses"][1])) >= LONG_TOKENS
    assert_same_scores(rmfast.load(folder).score(ROWS), transformers_scores(folder, ROWS))


def test_a_pad_token_that_is_the_eos_changes_nothing(folder: Path, scores: list[list[float]], tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["pad_token_id"] = tokenizer.eos_token_id
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    reloaded = rmfast.load(tmp_path / "model")
    assert reloaded.tokenizer.pad_token_id == reloaded.tokenizer.eos_token_id
    assert_same_scores(reloaded.score(ROWS), scores)


def test_a_bos_that_the_tokenizer_adds_stands_once(folder: Path, scores: list[list[float]], tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = "<|im_start|>"
    tokenizer.bos_token = bos
    number = tokenizer.convert_tokens_to_ids(bos)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, number)]
    )
    tokenizer.save_pretrained(tmp_path / "model")
    reloaded = rmfast.load(tmp_path / "model")
    assert reloaded.tokenizer("a")["input_ids"] == [number, *AutoTokenizer.from_pretrained(folder)("a")["input_ids"]]
    rows = [*ROWS, {"prompt": f"{bos}Hello", "responses": [" you", " there"]}]
    theirs = transformers_scores(tmp_path / "model", rows)
    ours = reloaded.score(rows)
    assert_same_scores(ours, theirs)
    assert abs(ours[0][0] - scores[0][0]) > 1e-3  # the bos is there
    # In the text or added: the same tokens. The chat template's text gets none of its own.
    assert_same_scores([ours[-1]], reloaded.score([{"prompt": "Hello", "responses": [" you", " there"]}]))
    messages = [row for row in ROWS if isinstance(row["prompt"], list)]
    assert_same_scores(reloaded.score(messages), [s for s, row in zip(scores, ROWS, strict=True) if row in messages])


@pytest.mark.parametrize("budget", [1, 300, 1_000_000])
def test_order_and_budget_do_not_matter(
    folder: Path, model: RewardModel, scores: list[list[float]], budget: int
) -> None:
    order = random.Random(budget).sample(range(len(ROWS)), len(ROWS))
    shuffled = rmfast.load(folder, tokens_per_pack=budget).score([ROWS[i] for i in order])
    assert_same_scores(shuffled, [scores[i] for i in order])
    assert_same_scores(model.score(ROWS[::-1]), scores[::-1])


def test_company_does_not_matter(model: RewardModel, scores: list[list[float]]) -> None:
    assert_same_scores([model.score([row])[0] for row in ROWS], scores)
    alone = [[model.score([row | {"responses": [r]}])[0][0] for r in row["responses"]] for row in ROWS]
    assert_same_scores(alone, scores)
    turned = model.score([row | {"responses": row["responses"][::-1]} for row in ROWS])
    assert_same_scores([values[::-1] for values in turned], scores)


def test_the_other_formats_of_rows(model: RewardModel) -> None:
    answers = [" sat on a mat", " ran", " slept"]
    want = model.score([{"prompt": "The cat", "responses": answers}])[0]
    rows: Rows = [
        {"prompt": "The cat", "chosen": answers[0], "rejected": answers[1]},
        {"prompt": "The cat", "chosen": answers[2], "rejected": answers[:2]},
        {"chosen": "The cat" + answers[1], "rejected": "The cat" + answers[0]},  # implicit prompt
        {"prompt": "The cat", "responses": answers, "scores": [0.0, 2.0, 1.0]},  # the order is the row's, not a rank's
    ]
    assert_same_scores(model.score(rows), [want[:2], [want[2], *want[:2]], [want[1], want[0]], want])


def test_rows_without_responses_and_no_rows(model: RewardModel) -> None:
    full = {"prompt": "x", "responses": [" y", " z"]}
    empty: dict[str, Any] = {"prompt": "x", "responses": []}
    scores = model.score([empty, full, empty, full])
    assert scores[0] == scores[2] == [] and len(scores[1]) == 2
    assert_same_scores([scores[1], scores[3]], model.score([full, full]))
    assert model.score([empty]) == [[]] and model.score([]) == []
    assert all(type(value) is float for value in scores[1])


def test_several_heads_give_their_mean(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "heads", num_labels=3)
    rows = ROWS[2:12]
    loaded = rmfast.load(folder, label="ensemble")
    assert loaded.network.head.weight.shape[0] == 3
    assert_same_scores(loaded.score(rows), transformers_scores(folder, rows))


def test_another_chat_template(folder: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    (tmp_path / "chat.jinja").write_text(template)
    rows: Rows = [{"prompt": MESSAGES, "responses": ["yes", "no, never"]}]
    by_file = rmfast.load(folder, chat_template=str(tmp_path / "chat.jinja")).score(rows)
    assert by_file == rmfast.load(folder, chat_template=template).score(rows)
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    assert_same_scores(by_file, transformers_scores(tmp_path / "model", rows))


def test_bfloat16(folder: Path, scores: list[list[float]]) -> None:
    low = rmfast.load(folder, dtype=torch.bfloat16)
    assert low.network.head.weight.dtype == torch.bfloat16
    ours, exact = (torch.tensor([v for row in s for v in row]) for s in (low.score(ROWS), scores))
    assert 0 < (ours - exact).abs().max() < 0.1 * exact.abs().max()


# --- what a path may be


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, a checkpoint each, two heads, an LM loss on an untied language-model head, prototypes of SwAV."""
    folder = tmp_path_factory.mktemp("run")
    write_model(folder / "base")
    write_rows(folder / "rows.jsonl", 8)
    command = arguments(
        model__path=folder / "base",
        model__heads=2,
        data__train=folder / "rows.jsonl",
        data__cache=folder / "cache",
        data__pairs_per_step=4,
        objective__lm=0.5,
        objective__contrastive="swav",
        optim__lr=1e-2,
        run__dir=folder / "run",
        run__tensorboard=False,
        run__max_steps=2,
        checkpoint__every=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
        assert main(command) == 0
    return folder / "run"


def test_a_run_folder_its_model_and_its_checkpoint_score_alike(run: Path) -> None:
    rows = ROWS[:8]
    theirs = transformers_scores(run / "model", rows)
    for path in (run, str(run), run / "model", run / "checkpoints" / "step-2"):
        assert_same_scores(rmfast.load(path).score(rows), theirs)
    earlier = rmfast.load(run / "checkpoints" / "step-1").score(rows)
    assert abs(earlier[0][0] - theirs[0][0]) > 1e-4


def test_an_unfinished_run_is_its_newest_whole_checkpoint(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ROWS[:8]
    checkpoints = Path(shutil.copytree(run / "checkpoints", tmp_path / "unfinished" / "checkpoints"))
    (checkpoints / ".step-12.partial").mkdir()
    assert rmfast.load(tmp_path / "unfinished").score(rows) == rmfast.load(checkpoints / "step-2").score(rows)
    assert not caplog.messages
    (checkpoints / "step-2").rename(checkpoints / "step-9")  # by hand
    earlier = rmfast.load(tmp_path / "unfinished").score(rows)
    assert earlier == rmfast.load(checkpoints / "step-1").score(rows)
    (line,) = caplog.messages  # once, however often the path is looked up
    assert line.startswith(f"{checkpoints / 'step-9'}: damaged: manifest.json says step 2, and its name another: ")
    assert line.endswith("; it stays where it is, and an earlier one is taken")
    (checkpoints / "step-1" / "manifest.json").unlink()
    (checkpoints / "step-9").rename(checkpoints / "step-8")
    with pytest.raises(UserError, match=f"{checkpoints / 'step-8'}: damaged checkpoint: manifest.json says step 2"):
        rmfast.load(tmp_path / "unfinished")
    # What the run exported at its end comes first.
    shutil.copytree(run / "model", tmp_path / "unfinished" / "model")
    assert_same_scores(rmfast.load(tmp_path / "unfinished").score(rows), rmfast.load(run).score(rows))


# --- errors


def test_a_model_without_reward_head_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base")
    with pytest.raises(UserError, match=f"{re.escape(str(folder))}: no reward head"):
        rmfast.load(folder)


@pytest.mark.parametrize("kind", ["missing", "empty folder", "run without any model", "another architecture"])
def test_a_path_without_a_model_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "here"
    if kind != "missing":
        path.mkdir()
    if kind == "run without any model":
        (path / "checkpoints" / ".step-1.partial").mkdir(parents=True)
    if kind == "another architecture":
        (path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError) as caught:
        rmfast.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": "x", "responses": ["a", 3]},
        {"prompt": "x", "responses": "text"},
        {"prompt": "x"},
        {"prompt": "x", "responses": [[{"role": "user", "content": "y"}, {"role": "assistant", "content": "a"}]]},
        {"prompt": [{"role": "user"}], "responses": ["a"]},
        {"prompt": [{"role": "user", "content": "x"}], "responses": [[{"role": "user", "content": "a"}]]},
        {"prompt": "x", "responses": ["half of a pair: \ud800"]},  # seen by the tokeniser only
        "text",
    ],
)
def test_a_row_that_cannot_be_scored_is_named_by_its_number(model: RewardModel, bad: Any) -> None:
    good = {"prompt": "x", "responses": ["a"]}
    with pytest.raises(UserError, match=r"\brow 3\b"):
        model.score([good, {"prompt": "x", "responses": []}, good, bad, good])


def test_a_token_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    save_hf_model("llama", tmp_path / "small")  # 96 tokens
    AutoTokenizer.from_pretrained(DECODER).save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match="beyond the model's vocabulary"):
        rmfast.load(tmp_path / "small").score([{"prompt": "世界", "responses": ["hello world"]}])
