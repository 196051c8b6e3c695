"""OpenRLHF's own client code against `rmfast serve`: its file is loaded as it is, nothing of it is copied.

    python -m benchmarks.serve.openrlhf --source DIR --model FOLDER --json OUT

DIR is a checkout of OpenRLHF (https://github.com/OpenRLHF/OpenRLHF) or the folder of the installed package's parent.
Of it `openrlhf/utils/agent.py` is run: `SingleTurnAgentExecutor.execute`, which samples (here from a stand-in that
gives ready tokens), decodes, asks the server over HTTP and reads the rewards. The rest of the package, which needs ray,
deepspeed and vLLM, is not imported. Rewards are compared with transformers', each text by itself.
"""

import argparse
import asyncio
import importlib.util
import logging
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.origin import commit, origin, write_json
from benchmarks.serve.servers import rmfast_server, running, texts


class Engine:
    """Gives the tokens of a ready response, as vLLM's engine would."""

    def __init__(self, tokenizer: Any, response: str) -> None:
        self.ids = tokenizer(response, add_special_tokens=False)["input_ids"]

    async def generate(self, prompt: list[int], options: Any, multi_modal_data: Any = None) -> Any:
        output = types.SimpleNamespace(token_ids=self.ids, finish_reason="stop", logprobs=None)
        return types.SimpleNamespace(outputs=[output])


def load_client(source: Path) -> Any:
    """The module openrlhf.utils.agent, with a logger in the place of the package's."""
    logs = types.ModuleType("openrlhf.utils.logging_utils")
    logs.init_logger = logging.getLogger  # type: ignore[attr-defined]
    for name in ("openrlhf", "openrlhf.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[logs.__name__] = logs
    spec = importlib.util.spec_from_file_location("openrlhf.utils.agent", source / "openrlhf" / "utils" / "agent.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--source", type=Path, required=True, help="a checkout of OpenRLHF")
    add("--model", required=True, help="a reward model's folder, whose tokenizer the policy is said to have")
    add("--prompts", type=int, default=6, help="with 4 answers each (%(default)s)")
    add("--port", type=int, default=5730)
    add("--json", type=Path, required=True, help="write the result to this file")
    args = parser.parse_args()
    agent = load_client(args.source)
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    model: Any = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32).eval()
    asked = texts(args.model, prompts=args.prompts, answers=4)
    options = types.SimpleNamespace(max_tokens=1024, logprobs=None)

    async def sample(url: str) -> list[dict[str, Any]]:
        executor = agent.SingleTurnAgentExecutor(f"{url}/get_reward")
        return await asyncio.gather(
            *(
                executor.execute(text.prompt, "label", options, 4096, tokenizer, Engine(tokenizer, text.response))
                for text in asked
            )
        )

    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        with running(rmfast_server(args.model, args.port), args.port, log) as server:
            outputs = asyncio.run(sample(server.url))
    gaps = []
    for text, output in zip(asked, outputs, strict=True):
        ids = tokenizer(text.query, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            truth = model.score(model.model(ids).last_hidden_state[:, -1])[0, 0].item()
        assert output["reward"] is not None and output["scores"] == output["reward"], output
        gaps.append(abs(output["reward"][0] - truth))
    found = {
        "origin": origin(),
        "openrlhf": commit(args.source) or subprocess.getoutput(f"git -C {args.source} rev-parse --short HEAD"),
        "texts": len(asked),
        "largest_difference": max(gaps),
    }
    write_json(args.json, found)
    print(found)


if __name__ == "__main__":
    main()
