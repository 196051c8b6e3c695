"""benchmarks/kernels at its smallest sizes on a CPU: all ops run, figures add up, failing tests are told."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The harness's modules."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.kernels import baselines, cases, run, timing, verify

    modules = (baselines, cases, run, timing, verify)
    return SimpleNamespace(**{module.__name__.rsplit(".", 1)[-1]: module for module in modules})


@pytest.fixture
def bench(kernels: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run.py in this process, taking the ops' own tests as passed."""
    monkeypatch.setattr(kernels.verify, "verdict", lambda test: "passed")

    def bench(*flags: str, code: int = 0) -> dict[str, Any]:
        out = tmp_path / "out.json"
        assert kernels.run.main(["--device", "cpu", "--size", "tiny", "--json", str(out), *flags]) == code
        return json.loads(out.read_text())

    return bench


def test_every_op_runs_and_its_figures_add_up(
    bench: Run, kernels: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    result = bench("--against", "none", "--rounds", "2", "--plots", str(pictures))
    assert result["skipped"] == []
    assert {row["op"] for row in result["results"]} == set(kernels.cases.OPS)
    for row in result["results"]:
        limits = result["limits"]
        limit = 1e3 * max(row["bytes"] / limits["bandwidth"], row["flops"] / limits["matmul"])
        assert row["share_of_limit"] == pytest.approx(limit / row["milliseconds"])
        assert row["speed_of_torch"] == 1.0 and len(row["rounds"]) == 2 and min(row["rounds"]) > 0
    for name, op in kernels.cases.OPS.items():
        passes = {row["pass"] for row in result["results"] if row["op"] == name}
        assert len(passes) == 1 + op.differentiable
        assert (kernels.verify.TESTS / op.test).is_file(), op.test
    assert "Triton needs a GPU" in capsys.readouterr().out
    for name in ("roofline.png", "ratios.png"):
        assert (pictures / name).stat().st_size > 10_000


def test_a_call_is_queued_while_the_device_sleeps(kernels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    queue: list[Any] = []
    monkeypatch.setattr(torch.cuda, "_sleep", queue.append)
    flush, start, end = (SimpleNamespace(**{verb: lambda name=name: queue.append(name)})
                         for verb, name in (("zero_", "flush"), ("record", "start"), ("record", "end")))  # fmt: skip
    cycles = kernels.timing.wait_cycles(50e-6)
    kernels.timing.enqueue(lambda: queue.append("call"), flush, start, end, cycles)
    assert queue == ["flush", cycles, "start", "call", "end"] and cycles >= 1.8e6  # 1 ms at 1.8 GHz
    assert kernels.timing.wait_cycles(2e-3) == 2 * 2 * cycles < kernels.timing.wait_cycles(1) < 4e7


def test_ceilings_are_taken_under_load_on_random_data(
    kernels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing, device = kernels.timing, torch.device("cpu")
    calls, clock = [0], [0.0]

    def call() -> None:
        calls[0] += 1
        clock[0] += 0.1

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    timing.load(call, device)
    assert calls == [1]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    timing.load(call, torch.device("cuda"))
    assert clock[0] - 0.1 >= 0.5
    loaded: list[Any] = []
    monkeypatch.setattr(timing, "load", lambda call, device: loaded.append(call()))
    monkeypatch.setattr(
        timing, "measure", lambda call, device, calls: timing.Sample([float(len(loaded))] * calls, None)
    )
    assert timing.bandwidth(device, size=1 << 12) == 2 * (1 << 12) / 1e-3  # measured after the load
    assert loaded[0].unique().numel() > 200
    assert timing.matmul_rate(device, torch.float32, width=16) == 2 * 16**3 / 2e-3


def test_shares_are_of_the_better_of_two_limits(
    bench: Run, kernels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = [{"bandwidth": 1e9, "matmul": 3e9, "dtype": "x"}, {"bandwidth": 2e9, "matmul": 1e9, "dtype": "x"}]
    given = iter(measured)
    monkeypatch.setattr(kernels.run, "limits", lambda device, small: next(given))
    result = bench("--op", "swiglu", "--against", "none", "--rounds", "1")
    assert result["limits"] == {"bandwidth": 2e9, "matmul": 3e9, "dtype": "x"}
    assert result["limits_measured"] == measured
    for row in result["results"]:
        limit = 1e3 * max(row["bytes"] / 2e9, row["flops"] / 3e9)
        assert row["limit_milliseconds"] == limit and row["share_of_limit"] == limit / row["milliseconds"]


def test_torch_compile_is_timed_beside_plain_torch(bench: Run) -> None:
    result = bench("--op", "swiglu", "--against", "compile", "--rounds", "1")
    assert {row["contender"] for row in result["results"]} == {"torch", "compile"}, result["skipped"]


def test_an_op_whose_tests_fail_is_timed_and_marked(
    kernels: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels.verify, "TESTS", tmp_path)
    monkeypatch.setattr(kernels.verify, "ROOT", tmp_path)
    kernels.verify.verdict.cache_clear()
    (tmp_path / "test_swiglu.py").write_text("def test_it():\n    assert 1 + 1 == 3\n")
    (tmp_path / "test_gae.py").write_text("def test_it():\n    pass\n")
    out = tmp_path / "out.json"
    flags = ["--device", "cpu", "--size", "tiny", "--rounds", "1", "--against", "none", "--json", str(out)]
    ops = ["--op", "swiglu", "gae", "sinkhorn"]
    assert kernels.run.main([*flags, *ops]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"swiglu +timed although its tests fail: FAILED test_swiglu.py", printed)
    result = json.loads(out.read_text())
    assert {row["op"] for row in result["results"]} == {"swiglu", "gae", "sinkhorn"} and not result["skipped"]
    tests = result["tests"]
    assert tests["gae"] == "passed" and tests["swiglu"].startswith("FAILED test_swiglu.py")
    assert tests["sinkhorn"] == "there is no test_sinkhorn.py"
    assert kernels.run.main([*flags, *ops, "--no-tests"]) == 0
    assert set(json.loads(out.read_text())["tests"].values()) == {"not run"}
    failed = {"passed": 0, "failed": 1, "skipped": 0, "failures": [{"test": "test_swiglu.py::x", "why": "y"}]}
    records = {"test_swiglu": {"status": "done", "result": failed}}
    (tmp_path / "suite.json").write_text(json.dumps({"stage": "suite", "parts": records}))
    assert kernels.run.main([*flags, *ops, "--suite", str(tmp_path / "suite.json")]) == 0  # said elsewhere
    assert json.loads(out.read_text())["tests"] == {
        "swiglu": "FAILED test_swiglu.py::x", "gae": "not run", "sinkhorn": "not run"
    }  # fmt: skip
    kernels.verify.verdict.cache_clear()


def test_a_wrong_contender_is_named_and_not_timed(kernels: SimpleNamespace) -> None:
    x = torch.randn(8, requires_grad=True)

    def off(wrong: Callable[[Tensor], Tensor]) -> str | None:
        return kernels.run.disagreement(wrong, lambda t: 2 * t, [x], backward=True)

    assert off(lambda t: t + t) is None
    assert off(lambda t: (2 * t).sum()) is None
    assert "result 0 differs" in (off(lambda t: 2.1 * t) or "")
    assert "result 1 differs" in (off(lambda t: t.detach() + t) or "")
    assert "another shape" in (off(lambda t: 2 * t[:4]) or "")


def test_this_folder_does_not_pass_for_the_package_kernels() -> None:
    """Scripts in benchmarks/ have that folder first on their path, and transformers looks for a package `kernels`: as a
    folder without __init__.py this one gives way to the real one."""
    assert not list((ROOT / "benchmarks").rglob("__init__.py"))
    look = "import transformers.utils as u; print(u.is_kernels_available())"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True)
    here = subprocess.run([sys.executable, "-c", look], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert here.returncode == 0 and here.stdout == done.stdout


def test_apex_is_a_contender_where_it_is_apex(kernels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    card, asked = torch.device("cuda"), []
    monkeypatch.setattr(kernels.baselines, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "apex", SimpleNamespace())  # the project of that name on PyPI
    assert kernels.baselines.rms_norm(card) == {}
    norm = SimpleNamespace(fused_rms_norm_affine=lambda *given: asked.append(given))
    monkeypatch.setitem(sys.modules, "apex.normalization", SimpleNamespace(fused_layer_norm=norm))
    monkeypatch.setitem(sys.modules, "apex.normalization.fused_layer_norm", norm)
    assert kernels.baselines.rms_norm(torch.device("cpu")) == {}
    kernels.baselines.rms_norm(card)["apex"](torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3))
    ((_, weight, shape, eps),) = asked
    assert weight.dtype == torch.bfloat16 and tuple(shape) == (3,) and eps == 1e-5
