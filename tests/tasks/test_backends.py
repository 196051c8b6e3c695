"""optim.backend and what a run says of its choices: in its first lines, in summary.json, or why one cannot be had."""

import json
from pathlib import Path

import pytest
import torch

from rmfast.kernels import compiled
from rmfast.kernels.multi_tensor import apex
from rmfast.kernels.prefix_attention import flash
from rmfast.train import main
from tests.packages import installed
from tests.runs import arguments, read_lines, write_model, write_rows

TIMED = {"step_seconds", "tokens_per_second", "pairs_per_second", "tflops", "mfu", "memory_gib"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backends")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 20)
    return folder


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plots, and no compiled ops, whether they were built or not."""
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
    monkeypatch.setattr("rmfast.tasks.ensemble.strength.write_ensemble_report", lambda *_: [])
    monkeypatch.setattr(compiled, "missing", lambda: "the compiled ops are not built (csrc/README.md says how)")


def run(folder: Path, name: str, **more: object) -> int:
    keys: dict[str, object] = {
        "model__path": folder / "model", "data__train": folder / "rows.jsonl", "data__cache": folder / "cache",
        "data__pairs_per_step": 8, "data__tokens_per_pack": 96, "run__dir": folder / name, "run__max_steps": 4,
        "run__tensorboard": False, "optim__lr": 1e-2, "optim__weight_decay": 0.1, "optim__clip": 0.5,
    }  # fmt: skip
    return main(arguments(**(keys | more)))


def figures(run: Path) -> list[dict[str, object]]:
    lines = read_lines(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_torch_by_name_is_the_default_to_the_bit(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "default") == 0
    said = capfd.readouterr().out
    assert run(folder, "torch", optim__backend="torch") == 0
    assert figures(folder / "torch") == figures(folder / "default")
    assert weights(folder / "torch") == weights(folder / "default")
    version = f"torch {torch.__version__}"
    for out in (said, capfd.readouterr().out):
        assert f"attention: kernel, plain torch; optimizer: {version}; cuda graphs: off\n" in out
    backends = json.loads((folder / "default" / "summary.json").read_text())["backends"]
    assert backends == {"attention": "kernel, plain torch", "optimizer": version, "cuda_graphs": "off"}


def test_a_run_by_apex_is_the_same_but_for_rounding(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with installed("nvidia_apex") as patch:
        patch.setattr(apex, "refusal", lambda *_: None)  # it wants a GPU
        assert run(folder, "apex", optim__backend="apex", run__max_steps=2) == 0
        assert "; optimizer: apex; " in capfd.readouterr().out
        assert json.loads((folder / "apex" / "summary.json").read_text())["backends"]["optimizer"] == "apex"
    assert run(folder, "other", run__max_steps=2) == 0
    for got, want in zip(figures(folder / "apex"), figures(folder / "other"), strict=True):
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4)


def test_a_run_by_flash_attn_is_the_same_but_for_rounding(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with installed("flash_attn_2") as patch:
        patch.setattr(flash, "refusal", lambda *_: None)  # it wants a GPU
        assert run(folder, "flash", model__attention="flash", run__max_steps=2) == 0
        assert "attention: flash, flash_attn 2.7.4.post1; optimizer: torch" in capfd.readouterr().out
        summary = json.loads((folder / "flash" / "summary.json").read_text())
        assert summary["backends"]["attention"] == "flash, flash_attn 2.7.4.post1"
    assert run(folder, "kernel", run__max_steps=2) == 0
    for got, want in zip(figures(folder / "flash"), figures(folder / "kernel"), strict=True):
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4)


def test_heads_step_by_the_same_backend(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keys = {"task": "ensemble", "ensemble__mode": "heads", "ensemble__members": 2, "run__max_steps": 2}
    with installed("nvidia_apex") as patch:
        import amp_C

        steps = []
        adam = amp_C.multi_tensor_adam_capturable
        patch.setattr(amp_C, "multi_tensor_adam_capturable", lambda *args: steps.append(args[7].item()) or adam(*args))
        patch.setattr(apex, "refusal", lambda *_: None)
        assert run(folder, "heads", optim__backend="apex", **keys) == 0
        assert "; optimizer: apex; " in capfd.readouterr().out and steps == [1, 1, 2, 2]
        assert json.loads((folder / "heads" / "summary.json").read_text())["backends"]["optimizer"] == "apex"
    assert run(folder, "plain heads", **keys) == 0
    for got, want in zip(figures(folder / "heads"), figures(folder / "plain heads"), strict=True):
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("packages", "key", "value", "line"),
    [
        ((), "optim.backend", "csrc", "csrc is not possible: the compiled ops are not built (csrc/README.md says how)"),
        ((), "optim.backend", "apex", "apex is not possible: NVIDIA's apex is not installed: csrc/README.md says how"),
        (("pypi_apex",), "optim.backend", "apex", "apex is not possible: the apex that is installed is not NVIDIA's"),
        (("nvidia_apex",), "optim.backend", "apex", "apex is not possible: it takes tensors on one GPU, got cpu"),
        (
            ("flash_attn_2",),
            "model.attention",
            "flash",
            "flash is not possible: it needs fp16 or bf16, got torch.float3",
        ),
        ((), "parallel.cuda_graphs", True, "there is no GPU here"),
    ],
)
def test_refused_in_one_line_before_anything_is_read_or_written(
    folder: Path, capfd: pytest.CaptureFixture[str], packages: tuple[str, ...], key: str, value: object, line: str
) -> None:
    with installed(*packages):
        assert run(folder, "refused", **{key.replace(".", "__"): value}, data__train="none.jsonl") == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"rmfast: {key}: {line}") and err.count("\n") == 1 and not out
    assert not (folder / "refused").exists()


def test_a_resumed_run_may_take_another_backend(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "resumed", run__max_steps=2) == 0
    assert run(folder, "resumed", optim__backend="torch", run__max_steps=2) == 0
    assert "resumed from step 2" in capfd.readouterr().out
