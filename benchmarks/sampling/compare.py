"""Sampling by rmfast and by transformers, side by side: CPU time, memory, share of the machine's matrix product.

    python -m benchmarks.sampling.compare --data FILE --model models/SmolLM2-135M-Instruct --json OUT

64 prompts x 4 samples at temperature 1, fp32, one thread, an interpreter for each mode. Of workload "equal" every
sample has 128 tokens, of "mixed" those of lengths.json; "top-p" is "mixed" with top-p 0.9. `generate` runs batches of
16 rows and ends rows by a criterion. Continuous batching, in "mixed" alone, has a request for each sample, blocks
shared, and its tokens a step are swept over some prompts first: the best is taken for all. `--json` is written after
each mode, and the same call goes on where it was stopped.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from benchmarks.origin import ROOT, origin, write_json
from benchmarks.sampling.worker import Job
from rmfast.data.row_kinds import PROMPTS
from rmfast.data.rows import read_row
from rmfast.data.sources import read_rows
from rmfast.data.tokenise import Encoded, encode

PROMPT_COUNT, N, LONGEST = 64, 4, 128
SWEEP = (16, 32, 64, 256)
SWEPT = 12  # prompts of the sweep
HALF_GIGABYTE = 0.5e9


def prompts(data: str, model: str, *, longest: int = 512, count: int = PROMPT_COUNT) -> list[list[int]]:
    """Token ids of the first prompts of a file that have at most so many tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    found: dict[bytes, list[int]] = {}
    for label, _, row in read_rows(data):
        encoded = encode(tokenizer, [read_row(label, row, kind=PROMPTS)])[0]
        if isinstance(encoded, Encoded) and len(ids := encoded.sequences[0]) <= longest:
            found.setdefault(ids.tobytes(), ids.tolist())
        if len(found) == count:
            break
    return list(found.values())


def run(job: Job) -> dict[str, Any]:
    """What a mode took."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "job.json")
        file.write_text(json.dumps(asdict(job)))
        command = [sys.executable, "-m", "benchmarks.sampling.worker", str(file)]
        out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


def flops(model: str, prompt_lengths: list[int], tokens: int) -> float:
    """FLOP that the workload needs of the weights: each prompt's tokens once through the layers, each drawn token
    through layers and output table, but for the last of a sample, which is not computed again."""
    c = AutoConfig.from_pretrained(model)
    attention = c.hidden_size * c.head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    layers = c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size)
    samples = len(prompt_lengths) * N
    table = c.vocab_size * c.hidden_size
    return 2.0 * (layers * (sum(prompt_lengths) + tokens - samples) + table * (len(prompt_lengths) + tokens - samples))


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """The arguments that all commands here have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="a file with prompts")
    add("--model", required=True, help="a Hugging Face folder of a causal language model")
    add("--json", type=Path, required=True, help="write everything that was found to this file")
    return parser


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--only", nargs="+", default=("equal", "mixed", "top-p"), help="workloads")
    args = parser.parse_args()
    ids = prompts(args.data, args.model)
    mixed = json.loads(Path(__file__).with_name("lengths.json").read_text())["lengths"]
    workloads = {"equal": ([LONGEST] * len(mixed), 1.0), "mixed": (mixed, 1.0), "top-p": (mixed, 0.9)}
    result: dict[str, Any] = json.loads(args.json.read_text()) if args.json.is_file() else {}
    result |= {
        "origin": origin(),
        "prompt_tokens": [len(p) for p in ids],
        "n": N,
        "workloads": result.get("workloads", {}),
    }
    for name in args.only:
        lengths, top_p = workloads[name]
        done = result["workloads"].setdefault(name, {"flops": flops(args.model, result["prompt_tokens"], sum(lengths))})
        job = Job("rmfast", args.model, ids, lengths, N, top_p, 16, None, 1)
        jobs = {"rmfast": job, "generate": replace(job, mode="generate")}
        if name == "mixed":
            jobs["rmfast, 0.5 GB"] = replace(job, memory=HALF_GIGABYTE)
            jobs |= {f"continuous, {batch} tokens": replace(
                job, mode="continuous", batch=batch, prompts=ids[:SWEPT], lengths=lengths[: SWEPT * N]
            ) for batch in SWEEP}  # fmt: skip
        for mode, each in jobs.items():
            if mode not in done:
                done[mode] = run(each)
                write_json(args.json, result)
                print(name, mode, done[mode], flush=True)
        if name == "mixed" and "continuous" not in done:
            best = min(SWEEP, key=lambda batch: done[f"continuous, {batch} tokens"]["cpu_seconds"])
            done["continuous"] = run(replace(job, mode="continuous", batch=best)) | {"batch": best}
            write_json(args.json, result)
            print(name, "continuous", done["continuous"], flush=True)


if __name__ == "__main__":
    main()
