"""The page of best-of-N: its figures are the curves', texts are escaped, and it says when to worry."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from rmfast.evaluation.best_of_n.curves import BestOfN, curves
from rmfast.evaluation.best_of_n.disagree import Answer, Disagreement
from rmfast.evaluation.combine import RULES
from rmfast.evaluation.diagnostics.selection import Candidates
from rmfast.report.best_of_n.page import write_best_of_n_report
from rmfast.report.best_of_n.plots import best_of_n_plots
from rmfast.report.best_of_n.words import best_rule, falls, verdict
from rmfast.report.plots import DARK, LIGHT
from tests.report.ensemble.test_page import rows_of

ODD = "<script>alert(1)</script> \x07 \ud800"


def found_of(members: int, *, prompts: int = 60, hacked: float = 0.0, worth: float = 1.0) -> BestOfN:
    rng = np.random.default_rng(members)
    gold = rng.normal(size=(prompts, 16))
    noise = rng.normal(size=(members, prompts, 16))
    proxies = np.where(rng.random(gold.shape) < hacked, 9.0, worth * gold + noise)
    scores = [list(of_member) for of_member in proxies]
    return curves(Candidates(scores, list(gold), np.arange(prompts), 2), [f"m{m}" for m in range(members)])


def test_every_figure_of_the_curves_is_on_the_page(tmp_path: Path) -> None:
    found = found_of(3)
    prompts = [Disagreement(ODD, Answer("picked <b>", 2.5, -1.25), Answer("liked & good", 0.5, 3.75))]
    files = write_best_of_n_report(tmp_path / "new" / "best", found, prompts, title="a <model>", notes=["4 <rows>"])
    assert [file.name for file in files] == ["members.png", "rules.png", "report.html"]
    assert all(file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for file in files[:-1])
    page = files[-1].read_text(encoding="utf-8")
    rows = rows_of(page)
    for curve in [*found.members, *found.rules]:
        cells = rows[curve.name]  # of the last table, gold by N
        assert cells == [f"{one.value:+.3f}" for one in curve.gold]
        gold = curve.gold[-1]
        assert f"<td>{gold.value:+.3f}</td><td>{gold.low:+.2f} to {gold.high:+.2f}</td>" in page
        assert f"<td>{100 * gold.value / found.ceiling[-1].value:.1f} %</td>" in page
    assert rows["KL divergence, at most (nats)"] == [f"{kl:.2f}" for kl in found.kl]
    assert rows["gold's best (ceiling)".replace("'", "&#39;")] == [f"{one.value:+.3f}" for one in found.ceiling]
    assert "<title>rmfast: a &lt;model&gt;</title>" in page and "4 &lt;rows&gt;" in page
    assert "<script>" not in page and "picked &lt;b&gt;" in page and "liked &amp; good" in page
    assert "proxy +2.500, gold -1.250" in page and "Gold\n-1.250 instead of +3.750" in page
    assert "http" not in page.replace("http-equiv", "") and page.count("<figure") == 2
    assert "<b>2</b> rows left out" in page and 'class="card good"' in page


def test_one_model_has_one_panel_and_no_rules(tmp_path: Path) -> None:
    files = write_best_of_n_report(tmp_path, found_of(1), [], title="one")
    assert [file.name for file in files] == ["members.png", "report.html"]
    page = files[-1].read_text(encoding="utf-8")
    assert "disagree most" not in page and "<b>1</b> model as proxy" in page and page.count("<figure") == 1


def test_a_single_prompt_has_a_page_without_intervals(tmp_path: Path) -> None:
    found = found_of(2, prompts=1, hacked=0.5)
    assert np.isnan(found.rules[0].fall.high) and not falls(found.rules[0])
    page = write_best_of_n_report(tmp_path, found, [], title="x")[-1].read_text(encoding="utf-8")
    words = re.sub(r"base64,[^\"]*", "", page)
    assert "<b>1</b> prompt</li>" in words and "nan" not in words and "95 % interval: –" in words


@pytest.mark.parametrize(
    ("hacked", "worth", "words"),
    [
        (0.0, 1.0, "gold rises with the proxy up to N = 16"),
        (0.15, 3.0, "falls after it: the proxy is over-optimised"),
        (0.0, 0.0, "may be no better than a random response"),
        (0.0, -1.0, "do not choose by this model"),
    ],
)
def test_words_say_when_to_worry(hacked: float, worth: float, words: str) -> None:
    (curve,) = found_of(1, prompts=300, hacked=hacked, worth=worth).members
    assert words in verdict(curve, 16) and falls(curve) == (hacked > 0 or worth < 0)


def test_the_page_of_an_over_optimised_proxy_says_so(tmp_path: Path) -> None:
    found = found_of(1, prompts=300, hacked=0.15, worth=3.0)
    page = write_best_of_n_report(tmp_path, found, [], title="x")[-1].read_text(encoding="utf-8")
    assert verdict(found.members[0], 16) in page and 'class="card bad"' in page and "past its peak" in page


@pytest.mark.parametrize("members", [1, 4])
def test_lines_are_the_curves(members: int) -> None:
    found = found_of(members)
    plots = best_of_n_plots(found)
    assert [plot.name for plot in plots] == ["members", "rules"][: 1 + (members > 1)]
    for plot, shown in zip(plots, (found.members, found.rules), strict=False):
        for theme in (LIGHT, DARK):
            figure = Canvas()
            plot.draw(figure, theme)
            lines = [list(line.get_ydata()) for line in figure.axes[0].lines]
            want = [[one.value for one in way] for curve in shown for way in (curve.proxy, curve.gold)]
            assert lines == [*want, [one.value for one in found.ceiling]]
            assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2", "4", "8", "16"]
    if members > 1:
        figure = Canvas()
        plots[1].draw(figure, LIGHT)
        legend = figure.axes[0].get_legend()
        assert legend is not None and [text.get_text() for text in legend.get_texts()][: len(RULES)] == list(RULES)
        assert best_rule(found).name in plots[1].title
