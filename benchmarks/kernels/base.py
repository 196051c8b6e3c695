"""The process of another revision: rmfast from the given work tree, the harness from here; answers timing requests.

`python -m benchmarks.kernels.base TREE DEVICE`, one JSON object a line in and out; started by contenders.Revision.
"""

import json
import os
import sys
from typing import Any


def main(tree: str, device_name: str) -> None:
    """Entry point; ends with its input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the answers
    sys.path.insert(0, tree)
    import rmfast.kernels

    sys.path.remove(tree)
    assert rmfast.__file__ is not None and rmfast.__file__.startswith(tree), rmfast.__file__
    import torch

    from benchmarks.kernels.contenders import SEED, Local
    from benchmarks.kernels.registry import OPS

    device = torch.device(device_name)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    last: tuple[Any, Local] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        key = (question["op"], question["size"])
        try:
            if last is None or last[0] != key:
                torch.manual_seed(SEED)
                op = OPS[question["op"]]
                problem = op.build(device, dtype, **op.sizes[question["size"]])
                last = key, Local(problem.call, problem.inputs, device)
            sample = last[1].time(question["pass"], question["calls"])
            answer: dict[str, Any] = {"milliseconds": sample.milliseconds, "peak_bytes": sample.peak_bytes}
        except Exception as error:  # an older revision may fail in any way; the other side reports it
            last = None
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
