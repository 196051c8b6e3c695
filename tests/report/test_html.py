"""The page: complete, self-contained, escaped, and whole when parts of the run are missing."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rmfast.errors import UserError
from rmfast.report.html import write_report

VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and collects texts, addresses and tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.addresses, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "srcset", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def page(run_dir):
    files = write_report(run_dir)
    assert all(file.is_file() for file in files) and files[-1] == run_dir / "report" / "report.html"
    text = files[-1].read_text(encoding="utf-8")
    return Page(text), text, files


def test_whole_report(run_dir):
    parsed, text, files = page(run_dir)
    assert len(files) == 8 and all(file.suffix == ".png" for file in files[:-1])
    words = " ".join(parsed.texts)
    accuracy = json.loads((run_dir / "eval.jsonl").read_text().splitlines()[-1])["eval_accuracy"]
    assert f"{100 * accuracy:.1f} %" in words and "interval" in words and "wins" in words
    assert {"Plots", "Final metrics", "Config", "Most confidently wrong on hh"} <= set(parsed.texts)
    assert "Missing" not in words and "nan" not in words
    assert parsed.tags.count("img") == 7
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text


def test_steps_that_were_left_out_are_told(run_dir):
    assert "left out" not in page(run_dir)[1]
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write("".join(f'{{"step": {step}, "skipped": true}}\n' for step in range(30, 42)))
    told = "12 steps were left out, as loss or gradient was not finite (optim.on_nonfinite): 30, 31, "
    (text,) = [text for text in page(run_dir)[0].texts if "left out" in text]
    assert text.startswith(told) and text.endswith("38, 39, ....")


def test_nothing_comes_from_elsewhere(run_dir):
    parsed, text, _ = page(run_dir)
    assert all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert not re.search(r"https?://|url\(", text)


def test_all_text_is_escaped(run_dir, scored, eval_row):
    attack = '<script>alert("1")</script>&amp;'
    (run_dir / "config.yaml").write_text(f"note: {attack}\n")
    (run_dir / "eval.jsonl").write_text(json.dumps(eval_row | {"name": attack, "eval_baseline": attack}) + "\n")
    np.savez(run_dir / "eval" / "<i>x-final.npz", **scored | {"labels": np.array([attack] * len(scored["labels"]))})
    parsed, text, _ = page(run_dir)
    assert "script" not in parsed.tags and "i" not in parsed.tags
    assert f"note: {attack}" in parsed.texts
    assert attack in parsed.texts


def test_worst_rows_are_the_most_negative_margins(run_dir, scored):
    parsed, _, _ = page(run_dir)
    margin = scored["scores"][scored["better"]] - scored["scores"][scored["worse"]]
    want = [str(scored["labels"][edge]) for edge in np.argsort(margin)[:10]]
    assert [text for text in parsed.texts if text.startswith("test.jsonl:")] == want


def test_worst_rows_name_a_row_once_and_broken_scores_first(run_dir, scored):
    labels = scored["labels"].copy()
    labels[:] = "test.jsonl:7"
    scored["scores"][3] = np.nan
    labels[3] = "test.jsonl:4"
    np.savez(run_dir / "eval" / "hh-final.npz", **scored | {"labels": labels})
    parsed, _, _ = page(run_dir)
    assert [text for text in parsed.texts if text.startswith("test.jsonl:")] == ["test.jsonl:4", "test.jsonl:7"]


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl", "eval.jsonl", "eval/hh-final.npz"])
def test_a_missing_part_is_left_out_and_named(run_dir, missing):
    (run_dir / missing).unlink()
    parsed, _, _ = page(run_dir)
    words = " ".join(parsed.texts)
    if missing == "eval/hh-final.npz":
        assert "Most confidently wrong" not in words
    else:
        assert f"{missing} is missing." in parsed.texts
    assert ("No held-out evaluation" in words) == (missing == "eval.jsonl")


def test_an_empty_run_and_no_run(tmp_path):
    parsed, _, files = page(tmp_path)
    assert len(files) == 1 and "Missing from this report" in parsed.texts
    with pytest.raises(UserError):
        write_report(tmp_path / "absent")


def test_writing_again_replaces(run_dir):
    first = write_report(run_dir)
    again = write_report(run_dir)
    assert first == again
    assert sorted(path.name for path in (run_dir / "report").iterdir()) == sorted(path.name for path in again)
