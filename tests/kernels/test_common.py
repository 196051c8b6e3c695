"""The choice of an implementation: what the log says of fallbacks, and autocast switched off."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rmfast.kernels import common
from rmfast.kernels.common import use_triton, without_autocast

ON_GPU: Any = SimpleNamespace(device=torch.device("cuda", 0))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(common, "HAS_TRITON", True)
    common._warn_of_fallback.cache_clear()
    yield
    common._warn_of_fallback.cache_clear()


def test_a_refusal_is_logged_once_for_each_op_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert not use_triton("rms_norm", "auto", ON_GPU, refusal="rows of 9000")
        assert not use_triton("rms_norm", "auto", ON_GPU, refusal="rows of 9001")
        assert not use_triton("add_rms_norm", "auto", ON_GPU, refusal="rows of 9000")
    found = [(r.name, r.levelno, r.getMessage()) for r in caplog.records]
    start = ("rmfast.kernels", logging.WARNING)
    assert found == [
        (*start, "rms_norm: plain torch instead of Triton kernels: rows of 9000"),
        (*start, "rms_norm: plain torch instead of Triton kernels: rows of 9001"),
        (*start, "add_rms_norm: plain torch instead of Triton kernels: rows of 9000"),
    ]


def test_what_is_no_refusal_is_not_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert use_triton("op", "auto", ON_GPU)
    assert not use_triton("op", "auto", ON_GPU, worth=False)
    assert not use_triton("op", "auto", torch.zeros(1), refusal="too wide")
    assert not use_triton("op", "reference", ON_GPU, refusal="too wide")
    with pytest.raises(ValueError, match="too wide"):
        use_triton("op", "triton", ON_GPU, refusal="too wide")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not use_triton("op", "auto", ON_GPU, refusal="too wide")
    assert not caplog.records


def test_autocast_is_off_inside_and_as_it_was_after() -> None:
    product = without_autocast(torch.mm)
    a = torch.randn(3, 3)
    want = a.mm(a)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(product(a, mat2=a), want)
        assert product(a, mat2=a).dtype == torch.float32 and torch.mm(a, a).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError):
        product(a, a[:2, :2])
    assert not torch.is_autocast_enabled("cpu")
