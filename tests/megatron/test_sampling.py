"""Ranks that hold a policy in parts draw what one process draws, and pass on streams and token ids alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmfast.config.load import load_config
from rmfast.models.hf import load_network, read_config
from rmfast.parallel.world import World
from rmfast.rollout.decoding import engine_decoding, network_decoding
from rmfast.rollout.draft import Draft, Request
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.sampler import Sampler
from rmfast.tasks.build.megatron import open_megatron
from tests.megatron.grid import LAYOUTS
from tests.megatron.standin import install
from tests.runs import arguments, fork_ranks, write_model

pytest.importorskip("megatron.core")
pytestmark = pytest.mark.slow

IDS = 1500  # of the tokenizer: of the second rank's part of 4,096 none
CASES: dict[str, tuple[SampleOptions, dict[str, Any]]] = {
    "few rows": (SampleOptions(max_new_tokens=8, seed=3), {"rows": 5, "tokens_per_pack": 12}),
    "filters": (SampleOptions(max_new_tokens=6, top_p=0.8, temperature=0.7, repetition_penalty=1.3), {}),
}
MODELS = {"tp2": "untied", "tp2 sp": "tied", "pp2 uneven": "tied", "pp2 interleaved": "untied", "tp2 pp2 sp": "tied"}
ENDS = range(0, 300, 2)
Found = dict[str, dict[int, list[Draft]]]


def prompts() -> list[Request]:
    rng = np.random.default_rng(0)
    lengths = (4, 9, 1, 7, 5, 3, 12)
    return [Request(rng.integers(3, IDS, n).astype(np.int32), 1000 + i) for i, n in enumerate(lengths)]


def drawn(model: Any, ids: int) -> Found:
    """The samples of each case, by prompt."""
    out: Found = {}
    for name, (options, room) in CASES.items():
        out[name] = dict(Sampler(model, options, ends=ENDS, **room).sample(prompts(), 2))
    return out


def worker(folder: Path, layouts: Sequence[str]) -> None:
    install()
    with World() as world:
        for layout in layouts:
            keys: Mapping[str, Any] = {"parallel__engine": "megatron"} | LAYOUTS[layout][1]
            name = MODELS[layout]
            path = folder / name
            config = load_config(arguments(model__path=path, data__train=path, **keys))
            engine = open_megatron(config, world, path, read_config(path), heads=0, lm=True, frozen=name == "tied")
            with engine_decoding(engine, IDS) as model:
                found = drawn(model, IDS)
            if model.held.keeps and engine.data.rank == 0:
                torch.save(found, folder / f"{layout} {name}")
            elif engine.data.rank == 0:
                torch.save(found, folder / f"{layout} {name} {world.rank}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampling")
    write_model(folder / "untied", layers=4)
    write_model(folder / "tied", layers=4, tied=True)
    for ranks in (2, 4):
        layouts = [layout for layout in MODELS if LAYOUTS[layout][0] == ranks]
        assert fork_ranks(ranks, lambda layouts=layouts: worker(folder, layouts)) == [0] * ranks  # type: ignore[misc]
    return folder


@pytest.mark.parametrize(("layout", "name"), list(MODELS.items()))
def test_a_layout_draws_what_one_process_draws(folder: Path, layout: str, name: str) -> None:
    network, _ = load_network(folder / name, heads=0, lm=True)
    truth = drawn(network_decoding(network.eval(), IDS), IDS)
    found: Found = torch.load(folder / f"{layout} {name}", weights_only=False)
    others = [torch.load(path, weights_only=False) for path in folder.glob(f"{layout} {name} *")]
    assert len(others) == LAYOUTS[layout][0] - 1
    for case, of_prompt in truth.items():
        reasons = {draft.stop_reason for drafts in of_prompt.values() for draft in drafts}
        assert reasons == {"eos", "length"}, case
        assert [list(ranks[case]) for ranks in others] == [list(found[case])] * len(others)  # in one order
        for number, drafts in of_prompt.items():
            for i, draft in enumerate(drafts):
                got = found[case][number][i]
                assert got.ids.tolist() == draft.ids.tolist() and got.stop_reason == draft.stop_reason, (case, number)
                np.testing.assert_allclose(got.log_prob, draft.log_prob, atol=1e-4)
                np.testing.assert_allclose(got.behaviour_log_prob, draft.behaviour_log_prob, atol=1e-4)
                assert all(np.array_equal(ranks[case][number][i].ids, draft.ids) for ranks in others)
