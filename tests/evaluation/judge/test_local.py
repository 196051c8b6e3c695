"""A local judge writes what transformers writes for each question alone, whatever stands in the batch."""

import shutil

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rmfast.errors import UserError
from rmfast.evaluation.judge.backend import Answer, Failure, Request, Sampling
from rmfast.evaluation.judge.local import Local
from rmfast.evaluation.judge.plan import JudgeOptions
from rmfast.evaluation.judge.run import judge_items
from tests.evaluation.judge.server import items
from tests.runs import DECODER

PROMPTS = ["Hi", "What is the answer to this rather longer question, please?", "Why?", "", "one two three four " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model that prefers no token much, so that greedy choices are far from ties and answers end early."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    eos = (tokenizer.eos_token, tokenizer.eos_token_id)  # begins plain texts, as a bos would; a template's text never
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{eos[0]} $A", special_tokens=[eos])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
        model.lm_head.weight[tokenizer.eos_token_id] *= 1.8
    model.generation_config.repetition_penalty = 1.5  # must not reach the judge
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def requests(prompts=PROMPTS):
    return [Request(f"key {n}", prompt) for n, prompt in enumerate(prompts)]


def ask(judge, some):
    return {request.key: answer for request, answer in judge.ask(some)}


def greedy_alone(folder, text, most, *, special):
    """The plainest loop: no cache, no padding, one question."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids, written = tokenizer(text, add_special_tokens=special)["input_ids"], []
    count = len(ids)
    for _ in range(most):
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        ids, written = [*ids, token], [*written, token]
        if token == tokenizer.eos_token_id:
            return Answer(tokenizer.decode(written[:-1], skip_special_tokens=True), "stop", count, len(written))
    return Answer(tokenizer.decode(written, skip_special_tokens=True), "length", count, most)


def test_greedy_answers_are_those_of_each_question_alone(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
        for p in PROMPTS
    ]
    with torch.no_grad():
        want = {f"key {n}": greedy_alone(folder, text, 24, special=False) for n, text in enumerate(texts)}
    assert {answer.finish for answer in want.values()} == {"stop", "length"}
    for budget in (1, 150, 10_000):
        assert ask(Local(folder, Sampling(0.0, 24), tokens_per_batch=budget), requests()) == want


def test_plain_text_without_a_template(folder, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with torch.no_grad():
        want = greedy_alone(tmp_path, "Why?\n\nAnswer:\n", 12, special=True)
    assert ask(Local(tmp_path, Sampling(0.0, 12)), requests(["Why?"])) == {"key 0": want}


def test_samples_depend_on_question_and_seed_alone(folder):
    def answers(some, budget=10_000, **options):
        return ask(Local(folder, Sampling(1.0, 12), tokens_per_batch=budget, **options), some)

    many = [Request(f"sample {n}", "Why?") for n in range(12)]
    together = answers(many)
    assert len({answer.text for answer in together.values()}) > 6
    assert answers(many[3:5]) == {key: together[key] for key in ("sample 3", "sample 4")}
    assert answers([*requests(), *many[::-1]], budget=200).items() >= together.items()
    assert answers(many, seed=1) != together


def test_samples_follow_the_models_distribution(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hm"}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    for temperature in (0.5, 1.0):
        with torch.no_grad():
            p = (model(ids).logits[0, -1] / temperature).softmax(0)
        token = int(p.argmax())
        many = [Request(f"{n}", "Hm") for n in range(600)]
        answers = ask(Local(folder, Sampling(temperature, 1)), many)
        hits = sum(answer.text == tokenizer.decode([token], skip_special_tokens=True) for answer in answers.values())
        share, error = float(p[token]), float((p[token] * (1 - p[token]) / 600).sqrt())
        assert 0.02 < share < 0.98 and abs(hits / 600 - share) < 4 * error


def test_a_question_that_does_not_fit_is_a_failure(folder):
    answers = ask(Local(folder, Sampling(0.0, 24)), requests(["Hi", "word " * 600]))
    assert isinstance(answers["key 0"], Answer)
    failure = answers["key 1"]
    assert isinstance(failure, Failure) and failure.cause == "too long" and "the model takes 512" in failure.detail


def test_identity_is_that_of_the_weights(folder, tmp_path):
    judge = Local(folder, Sampling())
    shutil.copytree(folder, tmp_path / "copy")
    assert Local(tmp_path / "copy", Sampling()).identity == judge.identity
    before = judge.identity
    with torch.no_grad():
        judge.model.model.layers[1].mlp.down_proj.weight += 1e-3
    assert judge.identity != before
    assert Local(folder, Sampling(), dtype=torch.bfloat16).identity != before
    assert Local(folder, Sampling(1.0)).identity != Local(folder, Sampling(1.0), seed=1).identity


def test_no_model_there(tmp_path):
    with pytest.raises(UserError):
        Local(tmp_path / "nowhere", Sampling())
    AutoTokenizer.from_pretrained(DECODER).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--judge .*no causal language model"):
        Local(tmp_path, Sampling())


def test_a_whole_run(folder, tmp_path):
    judge = Local(folder, Sampling(0.0, 8))
    some = items(3)
    result = judge_items(some, judge, JudgeOptions(reasoning=False), tmp_path / "log.jsonl", print)
    assert result.figures["parse_failures"] == 6 and [own.gaps.tolist() for own in result.results] == [[-1.0]] * 3
    again = judge_items(some, judge, JudgeOptions(reasoning=False), tmp_path / "log.jsonl", print)
    assert again.figures["from_log"] == 6


def test_questions_that_the_template_refuses_are_failures(folder):
    template = "{% if 'two' in messages[0].content %}{{ 1 // 0 }}{% endif %}{{ messages[0].content }}"
    answers = ask(Local(folder, Sampling(0.0, 4), chat_template=template), requests(["one", "two"]))
    assert isinstance(answers["key 0"], Answer)
    assert answers["key 1"] == Failure("template error", "ZeroDivisionError: integer division or modulo by zero")


def test_a_template_that_reads_the_clock_is_given_one_date(folder):
    template = "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}"
    asked = Local(folder, Sampling(0.0, 4), chat_template=template)
    other = Local(folder, Sampling(0.0, 4), chat_template=template, template_date="2025-01-05")
    assert (asked._text("Why?"), other._text("Why?")) == ("2024-07-26 Why?", "2025-01-05 Why?")
    assert asked.identity != other.identity  # answers to another date's questions are not taken from the log
