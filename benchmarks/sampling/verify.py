"""Checks sampling on a real decoder: greedy tokens are transformers', and samples do not depend on what shares a batch.

    python -m benchmarks.sampling.verify --data FILE --model models/SmolLM2-135M-Instruct --json OUT

Greedy: `generate` of each prompt alone; where the tokens part, the gap of the two logits there. Samples: one call with
all rows at once, against 1, 7 and 64 rows at a time and against two processes' shares; each difference is listed with
its place. fp32 on a CPU.
"""

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.origin import origin, write_json
from benchmarks.sampling.compare import parser_of, prompts
from rmfast.rollout.draft import Draft
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.policy import Policy, draw_numbers, load_policy

ROWS = (1, 7, 64)
TIE = 1e-4  # nats between two candidates that rounding may exchange


def drafts_of(policy: Policy, ids: list[list[int]], options: SampleOptions, n: int) -> list[list[Draft]]:
    """All samples, in the prompts' order."""
    requests = draw_numbers([np.array(prompt) for prompt in ids])
    found = dict(policy.sampler(options, ends=()).sample(requests, n))
    return [found[i] for i in range(len(ids))]


def parts(one: np.ndarray, other: np.ndarray) -> int | None:
    """Where two samples part first."""
    places = np.flatnonzero(one != other)
    return int(places[0]) if len(places) else None


def greedy(policy: Policy, model: Any, ids: list[list[int]], tokens: int) -> dict[str, Any]:
    """Greedy tokens beside those of `generate`."""
    ours = drafts_of(policy, ids, SampleOptions(temperature=0, max_new_tokens=tokens), 1)
    apart = []
    for number, (prompt, (draft,)) in enumerate(zip(ids, ours, strict=True)):
        inputs = torch.tensor([prompt])
        out = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=tokens, eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].numpy()  # fmt: skip
        if (place := parts(out, draft.ids)) is not None:
            whole = torch.tensor([[*prompt, *draft.ids[:place].tolist()]])
            logits = model(whole).logits[0, -1]
            gap = float(logits[int(out[place])] - logits[int(draft.ids[place])])
            apart.append({"prompt": number, "position": place, "gap": abs(gap)})
    return {"prompts": len(ids), "tokens": tokens, "parted": apart, "ties": all(each["gap"] < TIE for each in apart)}


def companies(policy: Policy, ids: list[list[int]], tokens: int, n: int) -> dict[str, Any]:
    """The same samples in other batches."""
    options = SampleOptions(max_new_tokens=tokens)
    want = drafts_of(policy, ids, options, n)
    found: dict[str, Any] = {}
    for rows in (*ROWS, None):
        if rows is None:
            halves = [drafts_of(policy, ids[rank::2], options, n) for rank in range(2)]
            got = [halves[i % 2][i // 2] for i in range(len(ids))]
        else:
            whole, policy.rows = policy.rows, rows
            got = drafts_of(policy, ids, options, n)
            policy.rows = whole
        pairs = [(i, j, parts(want[i][j].ids, got[i][j].ids)) for i in range(len(ids)) for j in range(n)]
        apart = [{"prompt": i, "sample": j, "position": place} for i, j, place in pairs if place is not None]
        found["two processes' shares" if rows is None else f"{rows} rows"] = apart
        print(rows, apart, flush=True)
    return {"samples": len(ids) * n, "tokens": tokens, "parted": found}


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--prompts", type=int, default=64, help="prompts (64)")
    add("--n", type=int, default=4, help="samples of each (4)")
    add("--tokens", type=int, default=128, help="tokens of each (128)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ids = prompts(args.data, args.model)[: args.prompts]
    policy = load_policy(args.model)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        result = {"origin": origin(), "greedy": greedy(policy, model, ids, args.tokens)}
        print(result["greedy"], flush=True)
        write_json(args.json, result)
        result["batches"] = companies(policy, ids, args.tokens, args.n)
    write_json(args.json, result)


if __name__ == "__main__":
    main()
