"""Stages of a pipeline know how long each other's messages are: none is told, and no host waits for its device."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.megatron.grid import assert_same_run, command
from tests.megatron.standin import install, waits
from tests.runs import Case, launch, write_model, write_rows

pytest.importorskip("megatron.core")

CASES = {"pp2": "lm", "pp2 interleaved": "swav"}


@pytest.mark.parametrize(
    ("rank", "runs", "forward", "backward"),
    [
        (0, 1, [], [7, 5, 9]),
        (1, 1, [7, 5, 9], []),
        # Two runs of layers: packs 0 and 1 through both runs, then 2 and 3.
        (0, 2, [7, 5, 9, 3], [7, 5, 7, 5, 9, 3, 9, 3]),
        (1, 2, [7, 5, 7, 5, 9, 3, 9, 3], [7, 5, 9, 3]),
    ],
)
def test_lengths_come_in_the_order_of_the_schedule(
    rank: int, runs: int, forward: list[int], backward: list[int]
) -> None:
    from rmfast.parallel.megatron.messages import Neighbours

    end = Neighbours.__new__(Neighbours)
    end.pp_group = SimpleNamespace(rank=lambda: rank, size=lambda: 2)
    end.config = SimpleNamespace(
        virtual_pipeline_model_parallel_size=runs if runs > 1 else None,
        microbatch_group_size_per_vp_stage=2 if runs > 1 else None,
        hidden_size=32,
    )
    end.expect([7, 5, 9, 3] if runs > 1 else [7, 5, 9])
    sent = torch.empty(1)
    assert end._communicate_shapes(sent, sent, False, False) == ([], [])
    before = [end._communicate_shapes(None, None, True, False)[0] for _ in forward]
    after = [end._communicate_shapes(None, None, False, True)[1] for _ in backward]
    assert before == [[length, 1, 32] for length in forward]
    assert after == [[length, 1, 32] for length in backward]


def test_the_stand_in_refuses_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    install(monkeypatch.setattr)
    assert torch.cuda.synchronize is waits and P2PCommunicator._communicate_shapes is waits
    with pytest.raises(AssertionError, match="the host waits"):
        torch.cuda.synchronize()


@pytest.mark.slow
def test_packs_of_many_lengths_pass_both_schedules_without_a_wait(tmp_path: Path) -> None:
    """Steps and evaluations; a wait would end them. Numbers are one process's."""
    write_model(tmp_path / "llama", layers=4)
    write_rows(tmp_path / "rows.jsonl", 20)
    more: dict[str, object] = {"run__max_steps": 2, "model__path": "llama", "data__eval": "rows.jsonl"}
    native = [Case(f"{o} native", command(tmp_path, o, f"{o} native", **more), ranks=1) for o in CASES.values()]
    pipelines = [Case(x, command(tmp_path, o, x, x, **more)) for x, o in CASES.items()]
    codes = launch(tmp_path / "launch", [*native, *pipelines], ranks=2)
    assert not any(code for case in codes.values() for code in case)
    for layout, objective in CASES.items():
        assert_same_run(tmp_path / layout, tmp_path / f"{objective} native")
