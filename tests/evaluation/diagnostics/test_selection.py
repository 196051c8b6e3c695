import json
from itertools import combinations

import numpy as np
import pytest

from rmfast.errors import UserError
from rmfast.evaluation.diagnostics.headline import resample_suite
from rmfast.evaluation.diagnostics.selection import Candidates, best_of_n, read_candidates, select
from tests.evaluation.diagnostics.made import RNG, made


def _brute(scores, gold, n):
    """Mean over all subsets of n, and over all best ones in each."""
    picks = []
    for some in combinations(range(len(scores)), n):
        best = max(scores[i] for i in some)
        picks.append(np.mean([gold[i] for i in some if scores[i] == best]))
    return np.mean(picks)


@pytest.mark.parametrize("levels", [1, 2, 3, 100])
def test_best_of_n_is_the_mean_over_all_subsets(levels):
    rng = RNG(levels)
    scores, gold = rng.integers(0, levels, 6).astype(float), rng.normal(size=6)
    np.testing.assert_allclose(best_of_n(scores, gold), [_brute(scores, gold, n) for n in range(1, 7)])


def _suites(accuracies):
    rng = RNG(5)
    draw = rng.random(400)
    return [resample_suite(made([[1.0 if d < a else -1.0, 0.0] for d in draw])) for a in accuracies]


def test_quality_from_random_to_gold_and_its_correlation():
    rng = RNG(0)
    gold = [rng.normal(size=5) for _ in range(300)]
    noise = [0.0, 0.3, 0.7, 1.5, 3.0, 100.0]
    scores = [[g + level * rng.normal(size=5) for g in gold] for level in noise]
    names = [f"m{i}" for i in range(6)]
    found = select(Candidates(scores, gold, np.arange(300), 2), names, _suites([0.95, 0.9, 0.8, 0.7, 0.6, 0.5]))
    quality = [m.quality.value for m in found.models]
    assert quality[0] == pytest.approx(1) and abs(quality[-1]) < 0.15 and quality == sorted(quality, reverse=True)
    assert found.best == pytest.approx(np.mean([g.max() for g in gold]))
    assert found.random == pytest.approx(np.mean([g.mean() for g in gold]))
    assert found.models[0].curve == pytest.approx(found.gold_curve)
    assert found.models[2].curve[-1] == pytest.approx(found.models[2].picked.value)
    assert found.models[2].quality_curve[0] == pytest.approx(0, abs=1e-9)
    assert found.most == 5 and found.rows == 300 and found.rows_left_out == 2
    first = found.correlations[0]
    assert first.figure == "pairwise" and first.kendall.value == pytest.approx(1)
    assert first.p == pytest.approx(2 / 720) and first.pearson.low > 0.5
    assert "6 models are few" in found.conclusion and "rarely" in found.conclusion


def test_few_models_are_said_to_be_few():
    gold = [np.arange(3.0)] * 4
    found = select(Candidates([gold] * 3, gold, np.arange(4)), ["a", "b", "c"], _suites([0.9, 0.8, 0.7]))
    assert found.conclusion.startswith("3 models: a correlation over so few means nothing")
    one = select(Candidates([gold], gold, np.arange(4)), ["a"], _suites([0.9]))
    assert one.correlations == [] and one.conclusion.startswith("One model")


def test_rows_with_fewer_candidates_give_what_they_have():
    gold = [np.array([0.0, 4.0]), np.array([0.0, 3.0, 6.0])]
    found = select(Candidates([gold], gold, np.arange(2)), ["a"], _suites([0.9]))
    assert found.gold_curve == pytest.approx([(2 + 3) / 2, (4 + 5) / 2, (4 + 6) / 2])


def _file(path, rewards, **more):
    rows = [{"prompt": f"p{i // 2}", "responses": ["x", "y"], "rewards": own} | more for i, own in enumerate(rewards)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_files(tmp_path):
    a = _file(tmp_path / "a", [[1, 2], [3, 4], [5, 6]])
    b = _file(tmp_path / "b", [[[1, 2], [3, 6]], None, [[0, 0], [2, 2]]], strength_mean=1)
    found = read_candidates([a, b], a)
    assert found.left_out == 1 and found.prompt.tolist() == [0, 1]
    assert [own.tolist() for own in found.scores[1]] == [[2, 4], [1, 1]]
    assert [own.tolist() for own in found.gold] == [[1, 2], [5, 6]]


def test_files_that_do_not_belong_together(tmp_path):
    a = _file(tmp_path / "a", [[1, 2], [3, 4]])
    with pytest.raises(UserError, match="b:1: another row than .*a:1"):
        read_candidates([_file(tmp_path / "b", [[1, 2], [3, 4]], responses=["x", "z"])], a)
    with pytest.raises(UserError, match="c: 1 rows, but .*a has 2"):
        read_candidates([_file(tmp_path / "c", [[1, 2]])], a)
    with pytest.raises(UserError, match="differ in the number of rewards"):
        read_candidates([_file(tmp_path / "d", [[1, 2, 3], [3, 4, 5]])], a)
    with pytest.raises(UserError, match="no row of 2 was scored"):
        read_candidates([_file(tmp_path / "e", [None, None])], a)
    with pytest.raises(UserError, match="no `rewards`"):
        read_candidates([str((tmp_path / "f").write_text("{}\n") and tmp_path / "f")], a)
    with pytest.raises(UserError, match="no JSON lines"):
        read_candidates([str((tmp_path / "g").write_text("{\n") and tmp_path / "g")], a)
    with pytest.raises(UserError, match="No such file"):
        read_candidates([str(tmp_path / "none")], a)
