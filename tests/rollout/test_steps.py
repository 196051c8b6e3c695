"""Steps replayed from a recording, with rows added, draw what steps that are started op by op draw."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.kernels.draw_tokens import csrc
from rmfast.models.hf import load_network
from rmfast.models.network import Network
from rmfast.parallel.engine import Held
from rmfast.parallel.graphs import CudaRecorder, Recorder
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.rollout import decoding, pool
from rmfast.rollout.decoding import engine_decoding, network_decoding
from rmfast.rollout.draft import Draft
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.sampler import Sampler
from tests.replay import ReplayOnTheCpu
from tests.rollout.tiny_policies import language_model, requests, sampled
from tests.tiny import VOCABULARY

PROMPTS = requests((1, 3, 9, 4, 17, 2, 6))
ENDS = (5, 17, 40, 41, 63, 88)


def attention(
    q: Tensor,
    prompt_kv: Tensor,
    pool: Tensor,
    layout: Tensor,
    *,
    append: Sequence[Tensor],
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None,
    impl: str,
) -> Tensor:
    """What `decode_attention` gives, by ops whose shapes do not depend on the layout, as those of its kernels."""
    place = torch.arange(pool.shape[1])
    begin, end, first, last = layout.long()[:, :, None]
    writes = (place == last - 1) & (last > first)
    for kept, new in zip(pool, append, strict=True):
        kept.copy_(torch.where(writes.any(0)[:, None, None], torch.einsum("rp,rhd->phd", writes.float(), new), kept))
    on_prompt, on_row = (place >= begin) & (place < end), (place >= first) & (place < last)
    position = torch.where(on_prompt, place - begin, end - begin + place - first)
    length = end - begin + last - first
    seen = ((on_prompt | on_row) & (position >= length - (window or pool.shape[1])))[:, None]
    keys, values = (x.nan_to_num().repeat_interleave(q.shape[1] // pool.shape[2], 1) for x in pool)
    logits = torch.einsum("rhd,phd->rhp", q, keys) * q.shape[2] ** -0.5
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)
    return torch.einsum("rhp,phd->rhd", weights, values)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> ReplayOnTheCpu:
    """What is recorded are ops that a GPU would run: nothing of the compiled library."""
    monkeypatch.setattr(pool, "decode_attention", attention)
    monkeypatch.setattr(csrc, "refusal", lambda *_: "it is not for a GPU")
    return ReplayOnTheCpu(warm_up=1)


def network_of(name: str, folder: Path, device: str = "cpu", **changes: bool) -> Network:
    language_model(name, **changes).save_pretrained(folder)
    network, _ = load_network(folder, heads=0, lm=True)
    return network.eval().requires_grad_(False).to(device)


def drawn(network: Network, recorder: Recorder | None, *, n: int = 5, **options: float) -> list[list[Draft]]:
    """With rows that end and are replaced, and a batch that gets smaller."""
    model = network_decoding(network, VOCABULARY)
    model.recorder = recorder
    drawing = SampleOptions(**{"max_new_tokens": 16, "seed": 5} | options)
    return sampled(Sampler(model, drawing, ends=ENDS, rows=20), PROMPTS, n)


def check_same(got: list[list[Draft]], want: list[list[Draft]]) -> None:
    for drafts, others in zip(got, want, strict=True):
        for draft, other in zip(drafts, others, strict=True):
            assert draft.ids.tolist() == other.ids.tolist() and draft.stop_reason == other.stop_reason
            np.testing.assert_allclose(draft.log_prob, other.log_prob, atol=1e-5)
            np.testing.assert_allclose(draft.behaviour_log_prob, other.behaviour_log_prob, atol=1e-5)


@pytest.mark.parametrize("name, options", [("llama", {}), ("mistral-window", {"top_p": 0.9, "temperature": 0.7})])
def test_replayed_steps_draw_what_steps_draw(
    name: str, options: dict[str, float], tmp_path: Path, recorder: ReplayOnTheCpu
) -> None:
    """Up to 20 rows at once are steps of 32 rows, and of 16 at the end."""
    network = network_of(name, tmp_path)
    want = drawn(network, None, **options)
    lengths = [len(draft.ids) for row in want for draft in row]
    assert min(lengths) < 4 and max(lengths) == 16
    check_same(drawn(network, recorder, **options), want)
    assert recorder.recorded == 2 and recorder.replayed > 16


def test_a_repetition_penalty_is_not_recorded(tmp_path: Path, recorder: ReplayOnTheCpu) -> None:
    """It depends on what was drawn."""
    network, penalty = network_of("llama", tmp_path), {"repetition_penalty": 1.5}
    check_same(drawn(network, recorder, **penalty), drawn(network, None, **penalty))
    assert recorder.recorded == 0


def test_weights_that_have_moved_are_read_where_they_are(tmp_path: Path, recorder: ReplayOnTheCpu) -> None:
    """By the next call to an engine."""
    found = []
    for given in (recorder, None):
        network = network_of("llama", tmp_path, tie_word_embeddings=True)
        engine, draws = NativeEngine(network, world=World(), options=AdamWOptions()), []
        for _ in range(2):
            with engine_decoding(engine, VOCABULARY) as model:
                model.recorder = given
                draws.append(sampled(Sampler(model, SampleOptions(max_new_tokens=6), ends=()), PROMPTS, 1))
            for weight in network.parameters():
                weight.data = weight.data * 1.25
        found.append(draws)
    for got, want in zip(*found, strict=True):
        check_same(got, want)
    assert recorder.recorded == 2
    assert found[0][0][0][0].ids.tolist() != found[0][1][0][0].ids.tolist()


@pytest.mark.parametrize(
    "device, head_dim, sharded, recorded",
    [("cuda", 64, False, True), ("cuda", 512, False, False), ("cuda", 64, True, False), ("cpu", 64, False, False)],
)
def test_steps_are_recorded_where_a_graph_can_hold_them(
    monkeypatch: pytest.MonkeyPatch, device: str, head_dim: int, sharded: bool, recorded: bool
) -> None:
    monkeypatch.setattr(decoding, "CudaRecorder", lambda device: ReplayOnTheCpu())
    monkeypatch.setattr(decoding, "HAS_TRITON", True)
    config: Any = SimpleNamespace(head_dim=head_dim, vocabulary=VOCABULARY, attention_cap=None)
    held = Held(
        runs=(), layers=(), config=config, dtype=torch.float32, kv_heads=1, width=VOCABULARY, replayed=not sharded
    )
    engine: Any = SimpleNamespace(device=torch.device(device), decoding=lambda: nullcontext(held))
    with engine_decoding(engine, VOCABULARY) as model:
        assert (model.recorder is not None) == recorded


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_cuda_graphs_draw_what_steps_draw(name: str, tmp_path: Path) -> None:
    network = network_of(name, tmp_path, "cuda")
    assert isinstance(network_decoding(network, VOCABULARY).recorder, CudaRecorder)
    check_same(drawn(network, CudaRecorder(torch.device("cuda"))), drawn(network, None))
