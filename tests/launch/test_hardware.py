"""Files that describe a machine in place of a data sheet."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmfast.cli import main
from rmfast.errors import UserError
from rmfast.launch.hardware import GPUS, Gpu, find_gpu
from tests.runs import ROOT

RATES: dict[str, Any] = {
    "memory": 40e9, "matrix": 1e14, "single": 2e13, "bandwidth": 1e12, "nvlink": 1e11, "network": 1e10,
}  # fmt: skip


def written(folder: Path, values: object) -> str:
    path = folder / "gpu.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return str(path)


def test_a_name_is_a_data_sheet_and_a_file_is_read(tmp_path: Path) -> None:
    assert find_gpu("h200") is GPUS["h200"]
    assert find_gpu(written(tmp_path, RATES | {"about": {"any": ["thing"]}})) == Gpu(**RATES)
    more = RATES | {"node": 4, "matrix_share": 1.0, "link_share": 1}
    assert find_gpu(written(tmp_path, more)) == Gpu(**more)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ("{", "is no JSON"),
        ([], "holds no JSON object"),
        (RATES | {"speed": 1}, "unknown key speed; known: memory, "),
        ({"memory": 1e9, "matrix": 1.0}, "lacks single, bandwidth, nvlink, network"),
        (RATES | {"matrix": 0}, "matrix must be a positive number, got 0"),
        (RATES | {"nvlink": "fast"}, "nvlink must be a positive number, got 'fast'"),
        (RATES | {"node": True}, "node must be a positive number, got True"),
        (RATES | {"matrix": 1e-300}, "matrix must be between 1000 and 1e+21, got 1e-300"),
        (RATES | {"memory": 10**400}, "memory must be between 1000 and 1e+21, got 1000"),
        (RATES | {"matrix_share": 50}, "matrix_share must be between 0.001 and 1, got 50"),
        ("[" * 200_000, "is no JSON"),
        (RATES | {"node": 2.5}, "node must be a whole number, got 2.5"),
        (json.dumps(RATES)[:-1] + ', "node": Infinity}', "node must be a positive number, got inf"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, values: object, line: str) -> None:
    with pytest.raises(UserError) as error:
        find_gpu(written(tmp_path, values))
    assert line in str(error.value) and "gpu.json" in str(error.value)


def test_an_unknown_name_says_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "configs" / "quickstart.yaml"), "--gpus", "2", "--gpu", "h800"]) == 2
    printed = capsys.readouterr().err
    assert "--gpu h800:" in printed and "h100, h200, a100" in printed and printed.count("\n") == 1


def test_the_plan_is_for_that_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(ROOT / "configs" / "smollm2_hh.yaml"), "--tokens-per-group", "400", "--gpus", "4"]
    words += ["--model.path", str(ROOT / "configs" / "shapes" / "llama3-8b"), "--model.dtype", "bfloat16"]
    took = []
    for share in (1.0, 0.25):
        file = written(tmp_path, RATES | {"memory": 300e9, "matrix_share": share, "node": 2})
        assert main([*words, "--gpu", file, "--out", str(tmp_path / "plan.json")]) == 0
        assert "assume the rates of" in capsys.readouterr().out
        saved = json.loads((tmp_path / "plan.json").read_text())
        assert saved["hardware"]["node"] == 2 and max(p["layout"]["tensor"] for p in saved["plans"]) == 2
        by = {json.dumps(p["layout"]): p["seconds_by"] for p in saved["plans"]}
        took.append(by)
    for layout, one in took[0].items():
        assert took[1][layout]["compute"] == pytest.approx(4 * one["compute"])
        assert took[1][layout]["optimizer"] == one["optimizer"]
