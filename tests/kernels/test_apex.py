"""AdamW and the norm by NVIDIA's apex, on a stand-in of its signatures and arithmetic; which apex is installed."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rmfast.kernels.multi_tensor import adamw_, apex, describe_backend, gradient_norm, refusal, save
from tests.packages import installed
from tests.trainer.test_syncs import DEVICE, NoNumbers, NoWaits

SHAPES = [(3, 5), (0,), (1,), (129,), (4, 0)]
CUDA = torch.device("cuda")


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for shape in SHAPES]


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    """The stand-in runs on the CPU; everything else is as on a GPU."""
    with installed("nvidia_apex") as patch:
        patch.setattr(apex, "refusal", lambda *_: None)
        yield


@pytest.mark.parametrize("decay", [[0.0] * 5, [0.1, 0.1, 0.0, 0.1, 0.0]])
def test_steps_are_the_references(on_the_cpu: None, decay: list[float]) -> None:
    """Also where it clips, skips (gradients of NaN leave no trace) and ends with an empty tensor."""
    start, results = [tensors(), tensors(), [t.square() for t in tensors()]], []
    for impl in ("apex", "reference"):
        torch.manual_seed(2)
        lists, step = [save(ts) for ts in start], torch.zeros(())
        for scale, skip in ((2.0, False), (1.0, True), (1.0, False), (None, None)):
            grads = [g * (torch.nan if skip else 1.0) for g in tensors()]
            step += not skip
            before = save(lists[0])
            adamw_(
                lists[0], grads, *lists[1:], step=step, lr=3e-3, betas=(0.8, 0.95), eps=1e-7, weight_decay=decay,
                grad_scale=None if scale is None else torch.tensor(scale),
                skip=None if skip is None else torch.tensor(skip), impl=impl,
            )  # fmt: skip
            assert torch.equal(lists[0][0], before[0]) == bool(skip)
        results.append([tensor for ts in lists for tensor in ts])
    for theirs, plain in zip(*results, strict=True):
        torch.testing.assert_close(theirs, plain, rtol=2e-6, atol=1e-7)


def test_the_norm(on_the_cpu: None) -> None:
    grads = tensors()
    got = gradient_norm(grads, impl="apex")
    assert got.dtype == torch.float32 and got.shape == ()
    torch.testing.assert_close(got, gradient_norm(grads, impl="reference"), rtol=1e-6, atol=0)
    assert gradient_norm([torch.zeros(0)], impl="apex") == 0
    grads[0][0, 0] = torch.nan
    assert gradient_norm(grads, impl="apex").isnan()


def test_arguments_are_those_of_the_published_kernels() -> None:
    """By position: chunk_size, noop_flag, tensor_lists (g, p, m, v), lr, beta1, beta2, epsilon, step, mode,
    bias_correction, weight_decay, inv_scale (csrc/multi_tensor_adam.cu)."""
    with installed("nvidia_apex") as patch:
        import amp_C

        seen: list[tuple[object, ...]] = []
        patch.setattr(amp_C, "multi_tensor_adam_capturable", lambda *args: seen.append(args))
        w, g, m, v = ([torch.full((2,), value)] for value in (1.0, 2.0, 3.0, 4.0))
        apex.adamw_(w, g, m, v, [0.1], torch.tensor(7.0), 0.5, torch.tensor(4.0), torch.tensor(True), 0.8, 0.95, 1e-7)
    ((chunk, flag, lists, rate, *betas, eps, step, mode, correct, decay, factor),) = seen
    assert (chunk, betas, eps, mode, correct, decay) == (65536, [0.8, 0.95], 1e-7, 1, 1, 0.1)
    assert [values[0][0].item() for values in lists] == [2.0, 1.0, 3.0, 4.0]
    scalars = {"flag": (flag, 1, torch.int32), "rate": (rate, 0.5, torch.float32)}
    scalars |= {"step": (step, 7, torch.int32), "factor": (factor, 0.25, torch.float32)}
    for tensor, value, dtype in scalars.values():
        assert tensor.item() == value and tensor.dtype == dtype and tensor.numel() == 1


def test_no_call_waits_for_the_device() -> None:
    shapes = [(3,), (0,), (2, 2)]
    with installed("nvidia_apex") as patch:
        import amp_C

        launched: list[str] = []
        patch.setattr(amp_C, "multi_tensor_adam_capturable", lambda *_: launched.append("adam"))
        patch.setattr(amp_C, "multi_tensor_l2norm", lambda *_: (torch.empty(1, device=DEVICE), launched.append("norm")))
        patch.setattr(apex, "refusal", lambda *_: None)
        w, g, m, v = ([torch.empty(shape, device=DEVICE) for shape in shapes] for _ in range(4))
        step, norm = torch.empty((), device=DEVICE), torch.empty((), device=DEVICE)
        options = {"weight_decay": [0.1, 0.1, 0.0], "grad_scale": norm.clamp(min=1.0), "skip": ~norm.isfinite()}
        with NoWaits(), NoNumbers():
            adamw_(w, g, m, v, step=step, lr=0.1, impl="apex", **options)
            assert gradient_norm(g, impl="apex").device == DEVICE
    assert launched == ["adam", "adam", "norm"]


def test_what_it_cannot_take() -> None:
    with installed("nvidia_apex"):
        assert refusal("apex", CUDA) is None
        assert refusal("apex", torch.device("cpu")) == "it takes tensors on one GPU, got cpu"
        with pytest.raises(ValueError, match="adamw_: impl='apex' is not possible: it takes tensors on one GPU"):
            adamw_(tensors(), tensors(), tensors(), tensors(), step=torch.tensor(1.0), lr=0.1, impl="apex")
    with torch.device("meta"):
        assert apex.unfit([torch.empty(3), torch.empty(2**31 - 1)]) is None
        large = "a tensor has 2,147,483,648 elements, above 2,147,483,647"
        assert apex.unfit([torch.empty(3), torch.empty(2**16, 2**15)]) == large
        assert apex.unfit([torch.empty(3), torch.empty(3, dtype=torch.bfloat16)]) == "it takes tensors in fp32"
        assert apex.unfit([torch.empty(3, 2).T]) == "it takes contiguous tensors"


def test_which_apex_is_installed() -> None:
    with installed("nvidia_apex"):
        assert apex.missing() is None and describe_backend("apex", CUDA).startswith("apex")
    with installed():
        assert apex.missing() == (
            "NVIDIA's apex is not installed: csrc/README.md says how to build it (the apex on PyPI is another project)"
        )
    with installed("pypi_apex"):
        assert apex.missing() == (
            "the apex that is installed is not NVIDIA's but the project of that name on PyPI, a toolkit for Pyramid: "
            "uninstall it (pip uninstall apex); NVIDIA's is built from source, csrc/README.md says how to build it"
        )


def test_an_apex_that_was_built_without_kernels_or_is_old_or_does_not_load(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "apex" / "optimizers").mkdir(parents=True)
    (tmp_path / "apex" / "__init__.py").touch()
    with installed(tmp_path):
        assert "was built without its CUDA kernels (amp_C)" in (apex.missing() or "")
    (tmp_path / "amp_C.py").write_text("def multi_tensor_adam_capturable(): ...\n")
    with installed(tmp_path):
        assert "is too old: its amp_C has no multi_tensor_l2norm" in (apex.missing() or "")
    (tmp_path / "amp_C.py").write_text("raise ImportError('undefined symbol: _ZN3c10')\n")
    with installed(tmp_path):
        assert apex.missing() == "apex's kernels (amp_C) do not load: undefined symbol: _ZN3c10"
