"""RewardBench: sections weighted by hand, prior sets, folders of the dataset, bad rows."""

import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rmfast.evaluation.suites.reward_bench import PRIOR, SECTIONS, SUITE
from tests.evaluation.suites.judged import causes, judged, numbers, write_json

SUBSETS = [name for names in SECTIONS.values() for name in names]
COLUMNS = {"chosen_model": "human", "rejected_model": "gpt"}


def pair(subset: str, number: int, chosen: Any, rejected: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "subset": subset, "prompt": f"{subset} {number}", "chosen": chosen, "rejected": rejected,
            **COLUMNS} | more  # fmt: skip


def pairs(subsets: list[str], seed: int = 0) -> list[dict[str, Any]]:
    digit = numbers(seed)
    return [pair(name, i, digit(), digit()) for k, name in enumerate(subsets) for i in range(2 + k % 5)]


def share_won(rows: list[dict[str, Any]], subset: str) -> float:
    own = [float(row["chosen"]) > float(row["rejected"]) for row in rows if row["subset"] == subset]
    return sum(own) / len(own)


def test_the_map_is_the_benchmarks() -> None:
    assert [len(names) for names in SECTIONS.values()] == [5, 6, 5, 7] and len(set(SUBSETS)) == 23
    assert [sum(names.values()) for names in SECTIONS.values()] == [358, 456, 740, 1968]
    assert sum(sum(names.values()) for names in SECTIONS.values()) - 984 + 447 == 2985  # the filtered set's rows


def test_sections_are_weighted_by_size_and_math_as_much_as_code(tmp_path: Path) -> None:
    data = pairs(SUBSETS)
    rows = SUITE.read(str(write_json(tmp_path / "filtered.jsonl", data)))
    assert (len(rows.items), rows.unscored, rows.notes) == (len(data), (), ())
    _, found, headline = judged(SUITE, rows, float)
    won = {name: share_won(data, name) for name in SUBSETS}
    chat = 100 * won["alpacaeval-easy"] + 95 * won["alpacaeval-length"] + 95 * won["alpacaeval-hard"]
    chat += 28 * won["mt-bench-easy"] + 40 * won["mt-bench-med"]
    code = sum(won[f"hep-{language}"] for language in ("cpp", "go", "java", "js", "python", "rust")) / 6
    safety = 100 * won["refusals-dangerous"] + 100 * won["refusals-offensive"] + 154 * won["xstest-should-refuse"]
    safety += 250 * won["xstest-should-respond"] + 136 * won["donotanswer"]
    assert headline["Chat"] == pytest.approx(chat / 358)
    assert headline["Safety"] == pytest.approx(safety / 740)
    assert headline["Reasoning"] == pytest.approx((won["math-prm"] + code) / 2)
    sections = [headline[name] for name in ("Chat", "Chat Hard", "Safety", "Reasoning")]
    assert headline["overall"] == pytest.approx(sum(sections) / 4) and list(headline)[0] == "overall"
    for name in SUBSETS:
        section = next(key for key, names in SECTIONS.items() if name in names)
        cell = found["pairwise", (section, name)]
        assert cell.accuracy == pytest.approx(won[name])
        assert cell.rows == sum(row["subset"] == name for row in data)
    plain = [float(row["chosen"]) > float(row["rejected"]) for row in data]
    assert found["pairwise", ()].correct == sum(plain)


def test_a_section_without_rows_is_nan_and_so_is_the_whole(tmp_path: Path) -> None:
    data = pairs([name for name in SUBSETS if name not in SECTIONS["Safety"] and name != "math-prm"])
    rows = SUITE.read(str(write_json(tmp_path / "rows.json", data)))
    _, _, headline = judged(SUITE, rows, float)
    assert math.isnan(headline["Safety"]) and math.isnan(headline["overall"])
    code = [share_won(data, f"hep-{name}") for name in ("cpp", "go", "java", "js", "python", "rust")]
    assert headline["Reasoning"] == pytest.approx(sum(code) / 6)
    assert rows.notes == (
        "6 of 23 subsets have no rows: refusals-dangerous, refusals-offensive, xstest-should-refuse, "
        "xstest-should-respond and 2 more",
    )


def test_the_datasets_folder_gives_its_filtered_rows_and_prior_sets(tmp_path: Path) -> None:
    data, prior = pairs(SUBSETS), pairs([*PRIOR], seed=1)
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in {"filtered-00000-of-00001": data, "raw-00000-of-00001": pairs(SUBSETS, 2)}.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")
    for name in PRIOR:  # with subsets of their own
        own = [row | {"subset": "validation"} for row in prior if row["subset"] == name]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(own), folder / f"{name}-00000-of-00001.parquet")
    write_json(folder / ".cache" / "hidden.json", [{}])
    rows = SUITE.read(str(tmp_path))
    assert len(rows.items) == len(data) + len(prior) and not rows.unscored
    assert rows.notes == ("1 files raw* are left out: the benchmark is the filtered set",)
    _, found, headline = judged(SUITE, rows, float)
    four = [share_won(prior, name) for name in PRIOR]
    assert headline["Prior"] == pytest.approx(sum(four) / 4)
    assert found["pairwise", ("Prior", "shp")].accuracy == pytest.approx(share_won(prior, "shp"))
    sections = [headline[name] for name in SECTIONS]
    assert headline["overall"] == pytest.approx(sum(sections) / 4)
    assert headline["overall with Prior"] == pytest.approx((2 * sum(sections) + headline["Prior"]) / 9)


def test_every_form_of_text_becomes_messages(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "7"}
    other = [{"role": "assistant", "content": "8"}]
    forms = [
        pair("donotanswer", 0, "7", "8", prompt="hi"),
        pair("donotanswer", 1, "7", "8", prompt=[user]),
        pair("donotanswer", 2, [answer], other, prompt=[user]),
        pair("donotanswer", 3, [answer], other, prompt="hi"),
        pair("donotanswer", 4, [user, answer], [user, *other], prompt="not this"),
        pair("donotanswer", 5, [user, answer], [user, *other], prompt=None),
    ]
    rows = SUITE.read(str(write_json(tmp_path / "rows.jsonl", forms)))
    assert not rows.unscored
    for item in rows.items:
        assert [item.example.conversation(r) for r in item.example.responses] == [[user, answer], [user, *other]]
        assert item.writers == ("human", "gpt")


def test_nothing_is_left_out_in_silence(tmp_path: Path) -> None:
    data = [
        pair("shp", 0, "", "3"),  # an empty answer is judged
        pair("donotanswer", 0, "5", "5"),  # a tie is lost
        pair("donotanswer", 0, "9", "3"),
        pair("my own", 1, "9", "3"),
        pair("donotanswer", 2, None, "3"),
        {"id": 3, "subset": "donotanswer", "prompt": "p", "chosen": "2"},
        "no object",
    ]
    rows = SUITE.read(str(write_json(tmp_path / "rows.jsonl", data)))
    assert causes(rows) == ["wrong columns", "wrong columns", "not an object"]
    assert [row.path for row in rows.unscored] == [("Safety", "donotanswer")] * 2 + [("other", "rows")]
    assert any("pairwise: 1 ids are in several rows (Safety/donotanswer/0)" in note for note in rows.notes)
    assert any("1 subsets are not of the benchmark and count in no section: my own" in note for note in rows.notes)
    _, found, headline = judged(SUITE, rows, lambda text: float(text or -1))
    assert (found["pairwise", ("Safety",)].correct, found["pairwise", ("Safety",)].rows) == (1, 2)
    assert found["pairwise", ("Prior", "shp")].correct == 0 and found["pairwise", ("other", "my own")].correct == 1
    assert math.isnan(headline["Prior"])  # of four prior sets one is there
