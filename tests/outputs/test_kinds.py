"""A file that exists is replaced only where it looks like what the command writes."""

from pathlib import Path

import pytest

from rmfast.errors import UserError
from rmfast.outputs.kinds import (
    BEST,
    BEST_OF_N,
    BEST_WORST,
    DENOISED,
    DIAGNOSTICS,
    PAGE,
    PICTURE,
    PLANS,
    RESULT,
    SAMPLED,
    SCORED,
    SCRIPT,
    Kind,
    check_kind,
)

RIGHT = {
    "result": (RESULT, b'{"format": 1, "suite": "x", "items": []}'),
    "diagnostics": (DIAGNOSTICS, b'{"suite": "x", "models": [], "draws": 1}'),
    "best of N": (BEST_OF_N, b'{"counts": [1], "ceiling": [], "members": [], "rules": []}'),
    "plans": (PLANS, b'{"workload": {}, "plans": []}'),
    "scored": (SCORED, b'{"prompt": "a", "rewards": null, "error": "x"}\n{"rewards": [1]}\n'),
    "sampled": (SAMPLED, b'{"prompt": "a", "responses": [], "stop_reasons": [], "log_probs": []}'),
    "best": (BEST, b'{"prompt": "a", "completion": "b", "reward": 1}'),
    "best and worst": (BEST_WORST, b'{"chosen": "a", "rejected": "b", "reward_chosen": 1, "reward_rejected": 0}'),
    "treated": (DENOISED, b'{"margin": 0, "target": 1, "weight": 1}\n'),
    "page": (PAGE, b"<!doctype html><title>rmfast: a</title>"),
    "picture": (PICTURE, b"\x89PNG\r\n Software\0rmfast"),
    "script": (SCRIPT, b"#!/bin/bash\n# x\n# Made by: rmfast launch\n"),
}
WRONG = (
    b"learning_rate: 1\n",
    b"[1]",
    b'{"prompt": "a"}\n',
    b"<!doctype html><title>a</title>",
    b"\x89PNG other",
    b"\0\xff",
)


@pytest.mark.parametrize("name", RIGHT)
def test_an_earlier_result_is_told_from_other_files(name: str, tmp_path: Path) -> None:
    kind, content = RIGHT[name]
    file = tmp_path / "out"
    check_kind("--out", file, kind)
    for good in (content, b""):
        file.write_bytes(good)
        check_kind("--out", file, kind)
    for bad in (*WRONG, *(other for key, (_, other) in RIGHT.items() if key != name)):
        file.write_bytes(bad)
        with pytest.raises(UserError, match=f"--out: {file} is there already and is no {kind.what.split('(')[0]}"):
            check_kind("--out", file, kind)


@pytest.mark.parametrize("name", ["scored", "treated"])
def test_a_row_that_the_command_did_not_write_keeps_a_file(name: str, tmp_path: Path) -> None:
    kind, content = RIGHT[name]
    (tmp_path / "out").write_bytes(content + b'{"prompt": "mine", "rewards": "high"}\n')
    with pytest.raises(UserError, match="is there already"):
        check_kind("--out", tmp_path / "out", kind)


def test_a_device_may_be_written_to() -> None:
    check_kind("--out", Path("/dev/null"), Kind("file", lambda path: False))
