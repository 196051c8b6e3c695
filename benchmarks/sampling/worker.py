"""Samples drawn by one mode, in an interpreter of its own: `python -m benchmarks.sampling.worker JOB.json`."""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels.timing import matmul_rate
from rmfast.rollout.draft import Request
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.policy import load_policy
from rmfast.rollout.pool import Pool


@dataclass(frozen=True)
class Job:
    """What a worker draws.

    Attributes:
        mode: "rmfast", "generate" (transformers, batches of `batch` rows) or "continuous" (its continuous batching, of
            `batch` tokens a step).
        prompts: token ids. lengths: tokens of each prompt's samples, in the order of the prompts.
        memory: bytes of rmfast's keys and values, at most.
    """

    mode: str
    model: str
    prompts: list[list[int]]
    lengths: list[int]
    n: int
    top_p: float
    batch: int
    memory: float | None
    threads: int


class Lengths:
    """Ends each sample after its number of tokens."""

    def __init__(self, job: Job) -> None:
        self.lengths, self.n = job.lengths, job.n

    def end(self, request: Request, number: int, ids: np.ndarray) -> bool:
        return len(ids) >= self.lengths[request.draw_number * self.n + number]


def rmfast(job: Job) -> tuple[Callable[[int], int], dict[str, Any]]:
    """Draws samples of the first so many prompts; gives how many tokens."""
    policy = load_policy(job.model, memory=job.memory)
    options = SampleOptions(max_new_tokens=max(job.lengths), top_p=job.top_p)
    sampler = policy.sampler(options, ends=(), stops=Lengths(job))
    facts: dict[str, Any] = {}
    model = sampler.settings.model
    make = model.pool

    def pool(tokens: int) -> Pool:
        facts["keys_and_values"] = tokens * model.token_bytes
        return make(tokens)

    vars(model)["pool"] = pool
    requests = [Request(np.array(ids, np.int32), i) for i, ids in enumerate(job.prompts)]

    def draw(count: int) -> int:
        done = list(sampler.sample(requests[:count], job.n))
        return sum(len(draft.ids) for _, drafts in done for draft in drafts)

    return draw, facts


def generate(job: Job) -> tuple[Callable[[int], int], dict[str, Any]]:
    """transformers' `generate`, left-padded, a row ended by a criterion."""
    from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).eval()

    class Ends(StoppingCriteria):  # type: ignore[misc]
        def __init__(self, lengths: Sequence[int], begin: int) -> None:
            self.lengths, self.begin = torch.tensor(lengths), begin

        def __call__(self, ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            return ids.shape[1] - self.begin >= self.lengths

    def draw(count: int) -> int:
        tokens, each = 0, max(1, job.batch // job.n)
        for begin in range(0, count, each):
            prompts = job.prompts[begin : min(begin + each, count)]
            lengths = job.lengths[begin * job.n : (begin + len(prompts)) * job.n]
            width = max(map(len, prompts))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=job.top_p, eos_token_id=None,
                pad_token_id=0, num_return_sequences=job.n, max_new_tokens=max(lengths),
                stopping_criteria=StoppingCriteriaList([Ends(lengths, width)]),
            )  # fmt: skip
            assert out.shape == (len(lengths), width + max(lengths))
            tokens += sum(lengths)
        return tokens

    config, rows = model.config, max(job.batch, job.n)
    longest = max(map(len, job.prompts)) + max(job.lengths)
    size = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    # What the same rows would take in one batch, beside what these batches take.
    whole = len(job.lengths) * longest * size
    return draw, {"keys_and_values": rows * longest * size, "keys_and_values_in_one_batch": whole}


def continuous(job: Job) -> tuple[Callable[[int], int], dict[str, Any]]:
    """transformers' continuous batching: a request for each sample, which shares its prompt's blocks."""
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).eval()
    page = 32  # of the default, 256 tokens, no prompt here fills one that could be shared
    tokens = sum(len(p) + page for p in job.prompts) + len(job.lengths) * (max(job.lengths) + 2 * page)
    config = ContinuousBatchingConfig(
        page_size=page, num_blocks=tokens // page, max_batch_tokens=job.batch, allow_block_sharing=True, seed=0,
        max_memory_percent=0.3,
    )  # fmt: skip
    how = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=job.top_p, eos_token_id=-1, pad_token_id=0,
        max_new_tokens=max(job.lengths),
    )  # fmt: skip

    def draw(count: int) -> int:
        drawn, wanted = 0, count * job.n
        manager = model.continuous_batching_context_manager(
            generation_config=how, continuous_batching_config=config, warmup=False
        )
        with torch.no_grad(), manager as requests:
            for i, prompt in enumerate(job.prompts[:count]):
                for j in range(job.n):
                    requests.add_request(prompt, max_new_tokens=job.lengths[i * job.n + j], eos_token_id=-1)
            done = 0
            while done < wanted:
                result = requests.get_result(timeout=1)
                if result is not None and result.is_finished():
                    drawn, done = drawn + len(result.generated_tokens), done + 1
                elif result is None and not requests.is_running():
                    raise RuntimeError("continuous batching ended before its requests")
        return drawn

    return draw, {}


MODES = {"rmfast": rmfast, "generate": generate, "continuous": continuous}


def main() -> None:
    """Run the job of a file, and print what it took as JSON."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(job.threads)
    rates = [matmul_rate(torch.device("cpu"), torch.float32, width=2048)]
    draw, facts = MODES[job.mode](job)
    draw(1)  # warm-up
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    tokens = draw(len(job.prompts))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rates.append(matmul_rate(torch.device("cpu"), torch.float32, width=2048))
    if tokens != sum(job.lengths):
        raise RuntimeError(f"{tokens} tokens were drawn, not {sum(job.lengths)}")
    found = {"cpu_seconds": cpu, "wall_seconds": wall, "tokens": tokens, "matmul": max(rates)}
    print(json.dumps(found | facts | {"peak_bytes": peak * 1024, "loaded_bytes": loaded * 1024}))


if __name__ == "__main__":
    main()
