"""The multi-tensor ops in plain torch: AdamW against torch's own to the bit, norms, MetaRM's way there and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels import compiled
from rmfast.kernels.multi_tensor import adamw_, gradient_norm, perturb_, restore_, save

SHAPES = [(), (0,), (1,), (3, 5), (7,), (33,), (4, 0), (129,)]


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for shape in SHAPES]


def zeros(like: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(t) for t in like]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("foreach", [False, True])
@settings(max_examples=10, deadline=None)
@given(
    beta1=st.sampled_from([0.0, 0.4, 0.9]), beta2=st.sampled_from([0.95, 0.999]), decay=st.sampled_from([0.0, 0.1]),
    lr=st.sampled_from([1e-5, 3e-3]),
)  # fmt: skip
def test_torchs_adamw_to_the_bit(
    dtype: torch.dtype, foreach: bool, beta1: float, beta2: float, decay: float, lr: float
) -> None:
    weights = tensors(dtype)
    theirs = [w.clone().requires_grad_() for w in weights]
    adamw = torch.optim.AdamW(theirs, lr=lr, betas=(beta1, beta2), eps=1e-7, weight_decay=decay, foreach=foreach)
    exp_avg, exp_avg_sq, step = zeros(weights), zeros(weights), torch.zeros(())
    for _ in range(5):
        grads = tensors(dtype)
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad.clone()
        adamw.step()
        step += 1
        options = {"betas": (beta1, beta2), "eps": 1e-7, "weight_decay": decay, "impl": "reference"}
        before = [g.clone() for g in grads]
        adamw_(weights, grads, exp_avg, exp_avg_sq, step=step, lr=lr, **options)
        assert all(torch.equal(g, b) for g, b in zip(grads, before, strict=True))
        for mine, their in zip(weights, theirs, strict=True):
            assert torch.equal(mine, their)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torchs_fused_kernel_agrees_also_where_it_clips_and_skips(dtype: torch.dtype) -> None:
    lists = [tensors(dtype), tensors(dtype), tensors(dtype), [t.square() for t in tensors(dtype)]]
    before, decay = [save(ts) for ts in lists], [0.0, 0.1] * (len(SHAPES) // 2)
    results = []
    for impl in ("torch", "reference"):
        mine = [save(ts) for ts in before]
        step = torch.zeros(())
        for scale, skip in ((2.0, False), (1.0, True), (1.0, False)):
            step += not skip
            grads = [g * (torch.nan if skip else scale) for g in save(mine[1])]
            options = {"grad_scale": torch.tensor(scale), "skip": torch.tensor(skip), "weight_decay": decay}
            adamw_(mine[0], grads, *mine[2:], step=step, lr=0.1, impl=impl, **options)
        assert step == 2
        results.append([mine[0], *mine[2:]])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-7)
    assert not torch.equal(results[0][0][3], before[0][3])
    strided = [t.mT if t.dim() == 2 else t for t in [torch.randn(3, 5)]]
    with pytest.raises(ValueError, match="impl='torch' is not possible: it takes contiguous tensors"):
        adamw_(strided, save(strided), save(strided), save(strided), step=step, lr=0.1, impl="torch")


def test_adamw_is_the_papers() -> None:
    """Written out in fp64 from Loshchilov and Hutter, algorithm 2."""
    weights, exp_avg, exp_avg_sq = tensors(torch.float64), tensors(torch.float64), tensors(torch.float64)
    exp_avg_sq = [v.square() for v in exp_avg_sq]
    grads, scale = tensors(torch.float64), torch.tensor(2.0)
    want = []
    for w, g, m, v in zip(weights, grads, exp_avg, exp_avg_sq, strict=True):
        m, v = 0.8 * m + 0.2 * (g / 2), 0.9 * v + 0.1 * (g / 2) ** 2
        want.append(w - 0.01 * (m / (1 - 0.8**7) / ((v / (1 - 0.9**7)).sqrt() + 1e-3) + 0.3 * w))
    adamw_(
        weights, grads, exp_avg, exp_avg_sq, step=torch.tensor(7.0), lr=0.01, betas=(0.8, 0.9), eps=1e-3,
        weight_decay=0.3, grad_scale=scale, impl="reference",
    )  # fmt: skip
    for got, true in zip(weights, want, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-12, atol=1e-14)


def test_decay_of_each_tensor_and_grads_in_bf16() -> None:
    weights, grads, decays = tensors(), tensors(torch.bfloat16), [0.1 * (i % 3) for i in range(len(SHAPES))]
    together = [save(weights), zeros(weights), zeros(weights)]
    options = {"step": torch.tensor(1.0), "lr": 0.1, "impl": "reference"}
    adamw_(together[0], grads, *together[1:], weight_decay=decays, **options)
    for i, decay in enumerate(decays):
        one = [save(weights[i : i + 1]), zeros(weights[i : i + 1]), zeros(weights[i : i + 1])]
        adamw_(one[0], [grads[i].float()], *one[1:], weight_decay=decay, **options)
        assert torch.equal(together[0][i], one[0][0])


@pytest.mark.parametrize("skip", [torch.tensor(True), torch.tensor(3.0), torch.tensor([1])])
def test_a_skipped_step_leaves_no_trace(skip: Tensor) -> None:
    lists = [tensors(), [t * torch.nan for t in tensors()], tensors(), tensors()]
    before = [save(ts) for ts in lists]
    adamw_(*lists, step=torch.tensor(1.0), lr=0.1, skip=skip, impl="reference")
    for i in (0, 2, 3):
        assert all(torch.equal(now, then) for now, then in zip(lists[i], before[i], strict=True))
    lists[1] = tensors()
    adamw_(*lists, step=torch.tensor(1.0), lr=0.1, skip=torch.tensor(0.0), impl="reference")
    for i in (0, 2, 3):
        assert not torch.equal(lists[i][3], before[i][3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gradient_norm(dtype: torch.dtype) -> None:
    grads = tensors(dtype)
    got = gradient_norm(grads, impl="reference")
    assert got.dtype == torch.float32 and got.shape == ()
    torch.testing.assert_close(got.double(), torch.cat([g.double().flatten() for g in grads]).norm(), rtol=1e-7, atol=0)
    torch.testing.assert_close(gradient_norm([torch.full((9,), 1e30)], impl="reference"), torch.tensor(3e30))
    assert gradient_norm([]) == 0 and gradient_norm([torch.zeros(0)], impl="reference") == 0
    grads[3][0, 0] = torch.nan
    assert gradient_norm(grads, impl="reference").isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_perturb_and_restore(dtype: torch.dtype) -> None:
    masters, grads = tensors(), tensors(dtype)
    targets = [m.to(dtype, copy=True) for m in masters]
    before = save(targets)
    perturb_(targets, masters, grads, eta=0.3, impl="reference")
    for t, m, g in zip(targets, masters, grads, strict=True):
        assert torch.equal(t, (m + torch.tensor(0.3) * g.float()).to(dtype))
    restore_(targets, masters, impl="reference")
    assert all(torch.equal(t, b) for t, b in zip(targets, before, strict=True))


def test_weights_that_are_their_own_masters() -> None:
    weights, grads = tensors(), tensors()
    before, saved = save(weights), save(weights)
    perturb_(weights, saved, grads, eta=torch.tensor(0.7), impl="reference")
    assert not torch.equal(weights[3], saved[3])
    restore_(weights, saved, impl="reference")
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def test_hundreds_of_tensors_and_none() -> None:
    weights = [torch.ones(i % 4) for i in range(500)]
    adamw_(weights, [torch.ones_like(w) for w in weights], zeros(weights), zeros(weights), step=torch.tensor(1), lr=0.5)
    for w in weights:
        torch.testing.assert_close(w, torch.full_like(w, 0.5))
    adamw_([], [], [], [], step=torch.tensor(1), lr=0.5)
    perturb_([], [], [], eta=1.0)
    restore_([], [])


def test_compiles() -> None:
    def step(weights: list[Tensor], grads: list[Tensor], m: list[Tensor], v: list[Tensor], count: Tensor) -> Tensor:
        perturb_(m, weights, grads, eta=0.1)
        adamw_(weights, grads, m, v, step=count, lr=0.1, skip=count > 5, grad_scale=gradient_norm(grads))
        restore_(v, weights)
        return gradient_norm(weights)

    lists = [tensors() for _ in range(4)]
    lists[3] = [v.square() for v in lists[3]]
    copies = [save(ts) for ts in lists]
    want = step(*lists, torch.tensor(2.0))
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*copies, torch.tensor(2.0))
    torch.testing.assert_close(got, want)
    del copies[1], lists[1]  # the fused kernel, which is not compiled, scales gradients in place
    for mine, plain in zip(copies, lists, strict=True):
        for a, b in zip(mine, plain, strict=True):
            torch.testing.assert_close(a, b)


def test_bad_input_is_refused() -> None:
    lists, step = [tensors() for _ in range(4)], torch.tensor(1.0)
    with pytest.raises(ValueError, match="adamw_: grads must be 8 tensors, got 7"):
        adamw_(lists[0], lists[1][:7], *lists[2:], step=step, lr=0.1)
    with pytest.raises(ValueError, match=r"adamw_: exp_avg\[3\] must be \(3, 5\), got \(5, 3\)"):
        adamw_(*lists[:2], [t.mT if t.dim() == 2 and t.numel() else t for t in lists[2]], lists[3], step=step, lr=0.1)
    with pytest.raises(ValueError, match="adamw_: weight_decay must be a number or 8 numbers, got 1"):
        adamw_(*lists, step=step, lr=0.1, weight_decay=[0.1])
    with pytest.raises(ValueError, match="impl must be one of auto, csrc, torch, apex, reference"):
        adamw_(*lists, step=step, lr=0.1, impl="triton")
    with pytest.raises(ValueError, match="adamw_: step must be a tensor"):
        adamw_(*lists, step=1, lr=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adamw_: lr must be a number or 8 numbers, got 2"):
        adamw_(*lists, step=step, lr=[0.1, 0.1])


def test_without_a_build_csrc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "missing", lambda: "the compiled ops are not built (csrc/README.md says how)")
    with pytest.raises(ValueError, match="impl='csrc' is not possible: the compiled ops are not built"):
        gradient_norm(tensors(), impl="csrc")
    assert gradient_norm(tensors(), impl="auto") > 0
    with pytest.raises(ValueError, match="perturb_: impl must be one of auto, csrc, reference, got 'apex'"):
        perturb_(tensors(), tensors(), tensors(), eta=1.0, impl="apex")


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_tensors_that_step_each_by_itself(impl: str) -> None:
    """Scalars for each tensor give what calls of their own give, whether they clip, skip or are further on."""
    count = len(SHAPES)
    scalars = {
        "step": torch.arange(1.0, count + 1, dtype=torch.float64),
        "lr": [0.1, *(0.01 * i for i in range(count - 2)), 0.1],
        "grad_scale": torch.linspace(1, 3, count),
        "skip": torch.arange(count) % 4 == 1,
    }
    lists = [tensors(), tensors(), tensors(), [t.square() for t in tensors()]]
    alone = [save(ts) for ts in lists]
    adamw_(*lists, **scalars, weight_decay=[0.1 * i for i in range(count)], impl=impl)
    for i in range(count):
        each = {name: values[i] for name, values in scalars.items()}
        adamw_(*(ts[i : i + 1] for ts in alone), **each, weight_decay=0.1 * i, impl=impl)
    for together, apart in zip(lists, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    with pytest.raises(ValueError, match=r"adamw_: skip must be a number or 8 numbers, got 3"):
        adamw_(*lists, **(scalars | {"skip": torch.ones(3)}))
