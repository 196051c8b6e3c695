"""What each protocol gives is what the models give, and what is wrong is said in a line."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmfast.errors import UserError
from rmfast.evaluation.combine import RULES, combine, vote_scores
from rmfast.evaluation.scoring.reward_model import RewardModel
from rmfast.serve.panel import Panel
from tests.scoring import CLOSE
from tests.serve.serving import NAME, serving
from tests.tiny import hf_scores

ROW: dict[str, Any] = {"prompt": "Who sat on the mat by the sea?", "responses": [" The cat.", " A dog", ""]}
CHAT = [{"role": "user", "content": "Who sat?"}, {"role": "assistant", "content": "The cat."}]


@torch.no_grad()
def test_answers_are_the_models(folder: Path, model: RewardModel) -> None:
    reference = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    query = "Who sat?<|im_end|> The cat, cut o"

    def whole(text: str, special: bool) -> float:
        return float(hf_scores(reference, [tokenizer(text, add_special_tokens=special)["input_ids"]]))

    async def ask() -> None:
        async with serving(Panel([model])) as client:
            status, answer = await client.post("/score", ROW | {"model": NAME})
            assert status == 200 and answer["rule"] == "mean" and answer["model"] == NAME
            assert np.allclose(answer["rewards"], model.score([ROW])[0], atol=CLOSE)
            assert answer["members"] == [answer["rewards"]]
            chat = model.score([{"prompt": CHAT[:1], "responses": ["The cat."]}])[0]
            _, answer = await client.post("/score", {"rows": [ROW, {"messages": CHAT}]})
            assert np.allclose(answer["rows"][1]["rewards"], chat, atol=CLOSE)
            assert len(answer["rows"][0]["rewards"]) == 3
            # As it stands: no eos is appended to a text that was cut.
            body = {"query": [query, "a"], "prompts": ["Who sat?", "a"], "labels": ["x", None]}
            _, answer = await client.post("/get_reward", body)
            assert answer["rewards"] == answer["scores"] and answer["extra_logs"] == {}
            assert np.allclose(answer["rewards"], [whole(query, False), whole("a", False)], atol=CLOSE)
            ids = tokenizer(query, add_special_tokens=False)["input_ids"]
            for given in (query, [query], ids, [ids]):
                _, answer = await client.post(
                    "/classify", {"input": given, "use_activation": False, "model": "by/path"}
                )
                assert abs(answer["data"][0]["probs"][0] - whole(query, True)) < CLOSE
                assert answer["data"][0] | {"probs": 0} == {
                    "index": 0,
                    "label": "LABEL_0",
                    "probs": 0,
                    "num_classes": 1,
                }
                assert answer["usage"]["prompt_tokens"] == len(ids) and answer["object"] == "list"
            _, answer = await client.post("/classify", {"messages": CHAT})
            assert abs(answer["data"][0]["probs"][0] - 1 / (1 + math.exp(-chat[0]))) < CLOSE
            _, answer = await client.post("/pooling", {"messages": CHAT, "activation": False})
            assert answer["data"][0] == {"index": 0, "object": "pooling", "data": [pytest.approx(chat[0], abs=CLOSE)]}
        async with serving(Panel([model]), activated=False) as client:  # as config.json says of a regression
            _, answer = await client.post("/pooling", {"input": [query, "a"]})
            assert np.allclose(
                [d["data"][0] for d in answer["data"]], [whole(query, True), whole("a", True)], atol=CLOSE
            )

    asyncio.run(ask())


def test_every_rule_of_an_ensemble(model: RewardModel, other: RewardModel) -> None:
    members = np.array([model.score([ROW])[0], other.score([ROW])[0]])

    async def ask() -> None:
        for rule in RULES:
            panel = Panel([model, other], rule=rule, k=0.5)
            expected = vote_scores(members, [0] * 3) if rule == "majority" else combine(members, rule, 0.5)
            async with serving(panel) as client:
                _, answer = await client.post("/score", ROW)
                assert np.allclose(answer["rewards"], expected, atol=CLOSE), rule
                assert np.allclose(answer["members"], members, atol=CLOSE)
                body = {"query": ["the cat sat", "the cat ran", "a"], "prompts": ["the cat", "the cat", "a"]}
                status, answer = await client.post("/get_reward", body)
                if rule == "majority":
                    assert status == 422 and "has none beside it" in answer["error"]["message"]
                    _, answer = await client.post("/get_reward", {k: v[:2] for k, v in body.items()})
                    assert answer["rewards"] in ([1, -1], [-1, 1], [0, 0])
                logs = answer["extra_logs"]
                assert np.allclose(logs["reward_std"], np.std([logs["member_0"], logs["member_1"]], axis=0))

    asyncio.run(ask())
    with pytest.raises(UserError, match="nothing to combine"):
        Panel([model], rule="worst")


BAD: list[tuple[str, Any, int, str]] = [
    ("/score", b"garbage", 400, "the body is not JSON: Expecting value"),
    ("/score", b"", 400, "not JSON"),
    ("/score", b"\xff\xfe\x00\xd8", 400, "not UTF-8"),
    ("/score", b"[" * 100_000, 400, "nested too deep"),
    ("/score", b"[1]", 400, "no JSON object but list"),
    ("/score", b'{"prompt": NaN}', 400, "NaN is no JSON"),
    ("/score", b'{"prompt": 1' + b"0" * 5000 + b"}", 400, "not JSON"),
    ("/score", {}, 422, "no `responses`, the texts to score"),
    ("/score", {"responses": ["a"]}, 422, "missing column: no `prompt` beside `responses`"),
    ("/score", {"prompt": "a", "responses": ["b"], "respones": 1}, 422, "'respones' is not known; there are prompt"),
    ("/score", {"prompt": "a", "responses": "b"}, 422, "`responses` is not a list but str"),
    ("/score", {"prompt": "a", "responses": []}, 422, "empty list"),
    ("/score", {"prompt": "a", "responses": ["\ud800"]}, 422, "half of a surrogate pair"),
    ("/score", {"prompt": "a", "responses": ["b " * 9000]}, 422, "and the model takes 8,192"),
    ("/score", {"rows": []}, 422, "not a list of rows"),
    ("/score", {"rows": [{"prompt": "a", "responses": ["b"]}, 3]}, 422, "row 1 is no object but int"),
    ("/score", {"messages": CHAT, "responses": ["a"]}, 422, "`messages` and `responses`: give one of them"),
    ("/score", {"messages": "hello"}, 422, "not a list of messages but str"),
    ("/score", {"messages": [{"role": "user", "content": "a"}]}, 422, "do not end in an assistant turn"),
    ("/score", {"prompt": "a", "responses": ["b"] * 5000}, 413, "5,000 responses, and a request may have 4,096"),
    ("/score", {"prompt": "a", "responses": ["b"], "model": "gpt"}, 404, "no model 'gpt' here; it is 'tiny'"),
    ("/get_reward", {"query": "text"}, 422, "`query` is not a list of texts"),
    ("/get_reward", {"query": ["a"], "prompts": []}, 422, "`prompts` is not a list of 1"),
    ("/get_reward", {"query": [""]}, 422, "the text has no tokens"),
    ("/classify", {}, 422, "`input` 0 is neither text nor a list of token ids but None"),
    ("/classify", {"input": [[]]}, 422, "neither text nor"),
    ("/classify", {"input": [[4096]]}, 422, "token id 4096 is beyond the model's vocabulary"),
    ("/classify", {"input": "a", "truncate_prompt_tokens": 5}, 422, "`truncate_prompt_tokens` 5 is not done here"),
    ("/pooling", {"input": "a", "encoding_format": "base64"}, 422, "`encoding_format` 'base64'"),
    ("/pooling", {"input": "a", "use_activation": "no"}, 422, "not true or false but 'no'"),
    ("/nowhere", {}, 404, "no path /nowhere here; there are /score"),
    ("/health", {}, 405, "Method Not Allowed"),
]


def test_what_is_wrong_is_said_in_a_line(model: RewardModel, capsys: pytest.CaptureFixture[str]) -> None:
    async def ask() -> None:
        async with serving(Panel([model])) as client:
            for path, body, status, said in BAD:
                given = json.dumps(body).encode() if isinstance(body, dict) else body
                got, answer = await client.post(path, given)
                line = answer["error"]["message"]
                assert (got, answer["error"]["code"]) == (status, status), (path, body, answer)
                assert said in line and line.isprintable() and len(line) < 600
            async with client.session.get(client.url + "/health") as health:
                assert (await health.json())["status"] == "ok"

    asyncio.run(ask())
    assert "Traceback" not in "".join(capsys.readouterr())
