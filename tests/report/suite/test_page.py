"""The page of suite results: every figure on it, hostile texts escaped, nothing from elsewhere, any suite's shape."""

import copy
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from rmfast.data.row_kinds import JUDGED
from rmfast.data.rows import parse_row
from rmfast.evaluation.diagnostics import diagnose
from rmfast.evaluation.diagnostics.resample import Figure
from rmfast.evaluation.diagnostics.selection import Correlation, Picks, Selection
from rmfast.evaluation.suites.answers import Answers
from rmfast.evaluation.suites.base import Item, Result, Rows, Unscored
from rmfast.evaluation.suites.find import SUITES
from rmfast.evaluation.suites.result import SuiteResult, result_json, suite_result
from rmfast.report.suite.cells import Grid, headline_guesses
from rmfast.report.suite.look import DARK_STOPS, LIGHT_STOPS, STEPS, colours, contrast, step
from rmfast.report.suite.page import suite_page
from rmfast.report.template import visible

VOID = {"meta", "img", "source", "br"}
HOSTILE = (
    '<script>alert("1")</script></div></details>&amp; <b>**bold**</b> \u202eright\u202c مرحبا 😀 \x00\x1b[31m\x85\ud800'
)
SCENARIOS = [
    *(("Harmlessness", name) for name in ("S1", "S10", "S2", "multi")),
    *(("Helpfulness", "Chat", name) for name in ("Casual Conversation", "Discussion")),
    ("Helpfulness", "Code", "Documentation"),
]


class Page(HTMLParser):
    """Checks that tags nest; collects texts, addresses, and the heat map's rows as {name: [(class, title, text)]}."""

    def __init__(self, source):
        super().__init__()
        self.open, self.texts, self.addresses, self.tags, self.rows = [], [], [], [], []
        self.feed(source)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs.items() if key in ("src", "srcset", "href", "action")]
        assert not any(key.startswith("on") for key in attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([attrs.get("class", ""), attrs.get("title", ""), ""])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1][2] += data


def rmb_items(rows=6):
    rng = np.random.default_rng(0)
    for number, path in enumerate(SCENARIOS):
        for part, count in (("pairwise", 2), ("best-of-n", 4)):
            for row in range(rows):
                texts = [f"answer {k} " + "x " * int(rng.integers(1, 40)) for k in range(count)]
                yield item(part, path, f"prompt {number} {row}", texts, uid=f"{part}-{number}-{row}")


def item(part, path, prompt, texts, uid, writers=("alpha", "beta", "gamma", "alpha")):
    edges = [[0, loser] for loser in range(1, len(texts))]
    row = {"prompt": [{"role": "user", "content": prompt}], "responses": texts, "edges": edges}
    example = parse_row(row, kind=JUDGED)
    return Item(
        uid=uid, label=f"data/{uid}.json:1", part=part, path=path, example=example, writers=writers[: len(texts)]
    )


def made(suite, items, name="model", seed=0, change=None, votes=False, **more):
    """A result read back from its file."""
    rng = np.random.default_rng(seed)
    results, lengths, each = [], [], []
    for own in items:
        rewards = rng.normal(size=len(own.example.responses))
        rewards[0] += 0.7
        if change:
            rewards = change(own, rewards)
        gaps = np.array([rewards[edge.better] - rewards[edge.worse] for edge in own.example.edges])
        results.append(Result(own, gaps, rewards))
        lengths.append(np.array([float(len(str(response))) for response in own.example.responses]))
        each.append(gaps + rng.normal(size=(5, len(gaps))))
    answers = Answers(results, [], lengths, "tokens", each if votes else None)
    rows = Rows(tuple(items), more.pop("unscored", ()), more.pop("notes", ()))
    about = {"name": name, "kind": "ensemble" if votes else "reward model"} | more
    result = suite_result(SUITES[suite], rows, answers, about=about, data="some/folder")
    return SuiteResult.from_json(json.loads(result_json(result.to_json())))


def page(tmp_path, results, diagnostics=None):
    (tmp_path / "page.html").write_text(suite_page(results, diagnostics), encoding="utf-8")
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    return Page(source), source


@pytest.fixture(scope="module")
def three():
    items = list(rmb_items())
    return [made("rmb", items, f"model {seed}", seed, votes=seed == 1) for seed in range(3)]


@pytest.fixture(scope="module")
def diagnosed(three):
    return diagnose(three)


def shown(value):
    return f"{100 * value:.1f}"


@pytest.mark.parametrize("models", [1, 3])
def test_every_cell_is_in_the_heat_map_and_in_the_table_of_intervals(tmp_path, three, models):
    results = three[:models]
    parsed, _ = page(tmp_path, results)
    titles = {cell[1]: cell for row in parsed.rows for cell in row if cell[1]}
    for result in results:
        for cell in result.cells:
            where = " / ".join(cell.path) or "all rows"
            start = f"{result.name}, {cell.part}, {where}: {cell.correct:,} of {cell.rows:,} right, "
            (found,) = [own for title, own in titles.items() if title.startswith(start)]
            assert found[2] == shown(cell.accuracy) and re.match(r"h\d+\b", found[0])
            assert f"[{shown(cell.low)}, {shown(cell.high)}]" in found[1]
            full = f"{found[2]}[{shown(cell.low)}, {shown(cell.high)}] {cell.correct} of {cell.rows}"
            group = " / ".join(cell.path) or "All rows"
            lines = [row for row in parsed.rows if row[0][2] == group and len(row) == 1 + 2 * models]
            assert any(full in own[2] for own in lines[-1]), full


def test_headline_beside_chance_and_length(tmp_path, three):
    parsed, _ = page(tmp_path, three)
    rules = headline_guesses(three[0], Grid.of(three).guesses[0])
    assert rules["Helpfulness pairwise"][1] == 0.5 and rules["Harmlessness best-of-n"][1] == 0.25
    assert rules["overall"][1] == pytest.approx(0.375)
    longer = [
        all(own.lengths[b] > own.lengths[w] for b, w in own.edges)
        for own in three[0].items
        if own.part == "best-of-n" and own.path[0] == "Helpfulness"
    ]
    assert rules["Helpfulness best-of-n"][2] == pytest.approx(np.mean(longer))
    for name, value in three[2].headline.items():
        line = next(row for row in parsed.rows if row[0][2] == name and row[1][2].startswith(shown(value)))
        assert [own[2] for own in line[2:]] == [shown(rules[name][1]), shown(rules[name][2])]
    assert f"{shown(three[1].headline['overall'])} %" in " ".join(parsed.texts)


def test_intervals_of_the_overall_score_come_from_diagnostics(tmp_path, three, diagnosed):
    plain, _ = page(tmp_path, three)
    own = diagnosed.models[0].headline["overall"]
    interval = f"overall [{shown(own.low)}, {shown(own.high)}]"
    assert interval not in plain.texts
    assert interval in page(tmp_path, three, diagnosed)[0].texts


def test_groups_stand_under_their_own_and_numbers_in_order(three):
    paths = Grid.of(three).paths
    assert [path[1] for path in paths if path[:1] == ("Harmlessness",) and len(path) == 2] == [
        "S1",
        "S2",
        "S10",
        "multi",
    ]
    assert all(paths.index(path[:-1]) < paths.index(path) for path in paths if path)
    chat = [i for i, path in enumerate(paths) if path[:2] == ("Helpfulness", "Chat")]
    assert chat == list(range(chat[0], chat[0] + 3))
    assert Grid.of(three).groups(2) == [path for path in paths if len(path) == 2]


def test_sections_of_diagnostics(tmp_path, three, diagnosed):
    parsed, source = page(tmp_path, three, diagnosed)
    words = " ".join(parsed.texts)
    titles = {"Length", "Calibration", "Writers", "Agreement", "Votes", "Models side by side", "Paired differences"}
    assert titles <= set(parsed.texts) and "Best-of-n selection" not in words
    pair = diagnosed.agreement.pairs[1].headline["overall"]
    assert f"{100 * pair.value:+.1f}" in words
    assert shown(diagnosed.agreement.kappa[0][2]) in words
    assert {"alpha", "beta", "gamma"} <= {row[0][2] for row in parsed.rows if row}
    bias = diagnosed.models[2].length["pairwise"].by_side["shorter"]
    assert f"{shown(bias.value)}[{shown(bias.low)}, {shown(bias.high)}] of {bias.count:,}" in {
        own[2] for row in parsed.rows for own in row
    }
    assert source.count("<polyline") == 3 * 3 + 2 * 3 + 2  # length; calibration; one ensemble's votes by two parts
    one, _ = page(tmp_path, three[:1], diagnose(three[:1]))
    assert "Length" in one.texts and "Agreement" not in one.texts and "Models side by side" not in one.texts


def test_what_nothing_defines_is_no_number(tmp_path):
    """All rewards equal: no spread, no calibration, all ties; and rows that no score was given for."""
    items = list(rmb_items(2))
    flat = made("rmb", items, "flat", change=lambda own, rewards: 0 * rewards)
    broken = made("rmb", items, "broken", change=lambda own, rewards: rewards * (np.nan if "S1" in own.path else 1))
    parsed, _ = page(tmp_path, [flat, broken], diagnose([flat, broken]))
    words = " ".join(parsed.texts)
    assert "nan" not in words.lower().split() and "inf" not in words.split()
    assert "no score" in words and "scores that are not finite" in words


def test_selection_of_best_of_n(tmp_path, three, diagnosed):
    figure = Figure(0.25, 0.125, 0.5)
    selection = Selection(
        **{"rows": 40, "rows_left_out": 2, "prompts": 38, "most": 4, "random": 0.1, "best": 1.3},
        gold_curve=[0.1, 0.6, 1.0, 1.3],
        models=[Picks(f"model {i}", figure, figure, [0.1, 0.2, 0.3, 0.4 + i], []) for i in range(3)],
        correlations=[Correlation(f"figure {i}", figure, figure, figure, 0.04) for i in range(12)],
        conclusion="Kendall's tau is <high>.",
    )
    parsed, _ = page(tmp_path, three, replace(diagnosed, selection=selection))
    assert "Best-of-n selection" in parsed.texts and "Kendall's tau is <high>." in parsed.texts
    assert {f"figure {i}" for i in range(12)} <= {row[0][2] for row in parsed.rows if row}
    assert "38 prompts, 40 rows, 2 left out" in " ".join(" ".join(parsed.texts).split())


def test_hostile_texts_are_shown_as_they_are(tmp_path):
    items = [
        item(
            "pairwise",
            ("Helpfulness", HOSTILE, HOSTILE),
            HOSTILE,
            [f"good {HOSTILE}", f"bad {HOSTILE}"],
            str(i),
            (HOSTILE, "b"),
        )
        for i in range(3)
    ]
    bad = (Unscored(HOSTILE, HOSTILE, (), HOSTILE, HOSTILE),)
    result = made("rmb", items, HOSTILE, change=lambda own, r: r * [1, 1] - [5, 0], unscored=bad, notes=(HOSTILE,))
    results = [result, replace(result, name="other")]
    parsed, source = page(tmp_path, results, diagnose(results))
    assert not {"script", "b "} & set(parsed.tags) and "<script" not in source
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", source)
    assert "**bold**</b> \u202eright\u202c مرحبا 😀 ␀␛[31m\\x85\ufffd" in unescape(source)
    bodies = [own for own in parsed.texts if own.startswith(("good <script>", "bad <script>"))]
    assert len(bodies) == 2 * 2 * 3 and 'alert("1")</script></div></details>&amp;' in bodies[0]


def test_nothing_comes_from_elsewhere(tmp_path, three, diagnosed):
    parsed, source = page(tmp_path, three, diagnosed)
    assert not parsed.addresses and not {"script", "link", "iframe", "img"} & set(parsed.tags)
    assert not re.search(r"https?://|url\(|@import", source)
    assert "width=device-width" in source and "prefers-color-scheme: dark" in source
    assert len(source) < 1_500_000


def test_worst_rows_unscored_rows_and_notes(tmp_path):
    items = list(rmb_items(2))
    bad = tuple(Unscored(f"data/x.json:{i}", "pairwise", (), "empty response", "`chosen` is empty") for i in range(130))
    results = [made("rmb", items, f"model {s}", s, unscored=bad, notes=("39 files are missing",)) for s in range(2)]
    assert len(results[0].not_scored) == 130
    parsed, _ = page(tmp_path, results)
    words = " ".join(parsed.texts)
    assert words.count("39 files are missing") == 1
    assert f"{len(items):,} of {len(items) + 130:,} rows were scored, 130 were not: 130 empty response." in words
    assert words.count("And 30 more.") == 1 and words.count("data/x.json:99") == 1
    for result in results:
        assert result.worst
        for row in result.worst:
            assert f"gap {row.gap:+.3f}" in parsed.texts
            assert row.better.strip() in parsed.texts and row.worse.strip() in parsed.texts


def test_suite_without_groups(tmp_path):
    items = [item("pairwise", (), f"prompt {i}", ["a a", "b"], str(i), ()) for i in range(9)]
    results = [made("pairwise", items, name, seed) for seed, name in enumerate("ab")]
    parsed, _ = page(tmp_path, results, diagnose(results))
    (line,) = [row for row in parsed.rows if row[0][2].startswith("All rows 9")]
    assert [own[2] for own in line[1:]] == [shown(r.headline["pairwise"]) for r in results]
    assert "Writers" not in parsed.texts


def test_a_suite_without_headline_figures(tmp_path):
    result = made("pairwise", [item("pairwise", (), "prompt", ["a a", "b"], "0", ())])
    parsed, _ = page(tmp_path, [replace(result, headline={})])  # which checks that tags nest
    assert "In per cent" in parsed.texts and "All rows" in " ".join(parsed.texts)


def test_parts_that_are_comparisons_of_one_item(tmp_path):
    """RM-Bench: nine verdicts an item, in parts of their own, so that chance is a coin's and length is unknown."""
    items = []
    for i, path in enumerate(
        [("chat",), ("code",), ("math",), ("safety", "safety-refuse"), ("safety", "safety-response")]
    ):
        row = {
            "prompt": f"p{i}",
            "responses": [*"abc", *"xyz"],
            "edges": [[r, 3 + w] for r in range(3) for w in range(3)],
        }
        items += [Item(f"{i}-{k}", f"f:{i}-{k}", "matrix", path, parse_row(row)) for k in range(4)]
    result = made("rm-bench", items)
    parsed, _ = page(tmp_path, [result], diagnose([result]))
    assert [own[2] for own in parsed.rows[0]][1:] == ["Right", "Chance", "Longer wins"]
    head = next(row for row in parsed.rows if row and row[0][2] == "Group")
    assert {own[2] for own in head[1:]} == {"easy", "normal", "hard"}
    rules = headline_guesses(result, Grid.of([result]).guesses[0])
    assert {chance for _, chance, _ in rules.values()} == {0.5} and np.isnan(rules["overall"][2])
    assert ("safety", "safety-refuse") in Grid.of([result]).groups(2) and ("chat",) in Grid.of([result]).groups(2)


def test_cells_that_only_one_model_has(tmp_path, three):
    less = replace(three[0], cells=[cell for cell in three[0].cells if cell.path[:1] != ("Harmlessness",)])
    parsed, _ = page(tmp_path, [less, three[1]])
    row = next(row for row in parsed.rows if row and row[0][2].startswith("Harmlessness 24 · 24"))
    assert [own[2] == "–" for own in row[1:]] == [True, False, True, False]


def judged(items):
    """A judge asked in both orders: of its pairs with gap 0, one has two tied verdicts and all others are split."""
    result = made("rmb", items, "judge", change=lambda own, rewards: np.array([1.0, *[0.0] * (len(rewards) - 1)]))
    votes = [[[1.0, 1.0] for _ in row.gaps] for row in result.items]
    for place, of_first in ((0, [0.0, 0.0]), (1, [1.0, -1.0]), (2, [-1.0, 1.0])):
        result.items[place].gaps[0] = 0.0
        votes[place][0] = of_first
    metrics = result.metrics | {"ties": 3}
    return replace(result, kind="judge", length_unit="characters", votes=votes, metrics=metrics)


def test_votes_that_cancel_out_are_no_ties(tmp_path):
    items = list(rmb_items(2))
    result = judged(items)
    parsed, _ = page(tmp_path, [result])
    assert any("1 tie and 2 split votes, which lose." in own for own in parsed.texts)
    result.votes[0][0] = [1.0, -1.0]
    assert any("), 3 split votes, which lose." in own for own in page(tmp_path, [result])[0].texts)
    result = replace(result, kind="reward model", votes=None)
    assert any("), 3 ties, which lose." in own for own in page(tmp_path, [result])[0].texts)
    one = page(tmp_path, [replace(result, metrics=result.metrics | {"ties": 1})])[0].texts
    assert any("), 1 tie, which loses." in own for own in one)


def test_lengths_of_each_model_in_its_own_unit(tmp_path):
    items = list(rmb_items(2))
    results = [made("rmb", items, "model"), judged(items)]
    parsed, source = page(tmp_path, results, diagnose(results))
    cards = source.split('<section class="card')[1:3]
    for card, own, other in zip(cards, ("tokens", "characters"), ("characters", "tokens"), strict=True):
        assert f"Lengths in {own}." in card and f"Lengths in {other}." not in card
    words = " ".join(" ".join(parsed.texts).split())
    assert "lengths in tokens ( A ), characters ( B ); accuracies" in words
    for unit in ("tokens", "characters"):
        assert words.count(f"Length of better less that of worse ({unit})") == 3  # all, and two parts
    section = source.split("<h2>Length</h2>")[1].split("<h2>")[0]
    assert section.count("<polyline") == 2 * 3  # each model on its own unit's axis alone


def test_an_interval_stands_once(tmp_path, three, diagnosed):
    """A headline figure that is a cell has one interval, whatever diagnostics say of it."""
    one = copy.deepcopy(diagnosed)
    one.models[0].headline["Helpfulness pairwise"] = Figure(0.5, 0.001, 0.999)
    parsed, _ = page(tmp_path, three, one)
    assert "[0.1, 99.9]" not in " ".join(parsed.texts)


def test_long_notes_are_folded(tmp_path, three):
    files = ", ".join(f"Helpfulness/Chat/file {i}" for i in range(40))
    long, short = f"pairwise: 40 of 61 files are missing: {files}", "pairwise: 1 of 61 files is missing: x"
    parsed, source = page(tmp_path, [replace(three[0], notes=[long, short])])
    assert f"<li>{short}</li>" in source
    assert f"<li><details><summary>{long[:159]}…</summary>{long}</details></li>" in source


@pytest.mark.parametrize("stops", [LIGHT_STOPS, DARK_STOPS], ids=["light", "dark"])
def test_scale_is_readable_and_goes_one_way_from_its_middle(stops):
    pairs = colours(stops)
    assert len(pairs) == 2 * STEPS + 1 and all(contrast(*pair) >= 4.5 for pair in pairs)
    away = [contrast(paper, pairs[STEPS][0]) for paper, _ in pairs]
    assert all(np.diff(away[: STEPS + 1]) < 0) and all(np.diff(away[STEPS:]) > 0)


def test_steps_of_the_scale():
    assert [step(v, 0.5, 0.3) for v in (0.0, 0.2, 0.5, 0.51, 0.8, 1.0)] == ["h0", "h0", "h7", "h7", "h14", "h14"]
    assert step(float("nan"), 0.5, 0.3) == "none"


def test_text_of_line_ends():
    assert visible("a\r\nb\rc\n\td") == "a\nb␍c\n\td"
