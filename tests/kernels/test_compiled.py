"""The tool that compiles without a GPU sees faults, and what attention's kernels must keep under any compiler.

Run as a program this file builds kernels that have a known fault: in the tests' own process Triton may be interpreted.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rmfast.kernels import prefix_layout
from rmfast.kernels.info_nce import triton as info_nce
from rmfast.kernels.launch import launch, recording
from rmfast.kernels.prefix_attention.triton import prefix_attention_bwd, prefix_attention_fwd
from tests.kernels import aot
from tests.kernels.harness import far_apart
from tests.kernels.test_aot import run
from tests.kernels.variants import variant

FAR = tl.constexpr(2**31 - 1)


@triton.jit
def product_kernel(
    a_ptr, b_ptr, out_ptr, steps, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    acc = tl.zeros((M, N), tl.float32)
    for step in range(0, steps):
        a = tl.load(a_ptr + m[:, None] * steps * K + step * K + k[None, :])
        b = tl.load(b_ptr + (step * K + k[:, None]) * N + n[None, :])
        if WIDE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    tl.store(out_ptr + m[:, None] * N + n[None, :], acc)


@triton.jit
def ranges_kernel(a_ptr, layout_ptr, out_ptr, tokens, M: tl.constexpr, CLAMPED: tl.constexpr, BEFORE: tl.constexpr):
    """As attention's second range of keys was: from the first of those that anyone sees, FAR where nobody sees any. Or
    what lies `BEFORE` it."""
    m = tl.arange(0, M)
    first = tl.load(layout_ptr + m, m < tokens, FAR)
    low, high = tl.min(first, 0), tl.max(tl.where(first < FAR, m + 1, 0), 0)
    if CLAMPED:
        low = tl.minimum(low, high)
    acc = tl.zeros((M, M), tl.float32)
    for begin in range(0 if BEFORE else low, low if BEFORE else high, M):
        key = begin + m
        a = tl.load(a_ptr + key[:, None] * M + m[None, :], key[:, None] < high, 0.0)
        acc = tl.dot(a, tl.trans(a), acc, input_precision="ieee")
    tl.store(out_ptr + m[:, None] * M + m[None, :], acc)


@triton.jit
def two_products_kernel(a_ptr, out_ptr, steps, M: tl.constexpr, N: tl.constexpr):
    """Of which one has M rows and the other N."""
    m, n = tl.arange(0, M), tl.arange(0, N)
    a = tl.load(a_ptr + m[:, None] * N + n[None, :])
    acc = tl.zeros((N, N), tl.float32)
    for step in range(0, steps):
        b = tl.load(a_ptr + step * N * N + n[:, None] * N + n[None, :])
        product = tl.dot(a, b, input_precision="ieee").to(a.dtype)
        acc = tl.dot(tl.trans(product), a, acc, input_precision="ieee")
    tl.store(out_ptr + n[:, None] * N + n[None, :], acc)


@triton.jit(do_not_specialize=["size"])
def size_kernel(x_ptr, size, stride):
    tl.store(x_ptr + size * stride, 0.0)


@triton.jit
def softmax_kernel(x_ptr, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + at)
    p = tl.exp(x - tl.max(x, 0))
    tl.store(x_ptr + at, p / tl.sum(p, 0))


def product(
    m: int, n: int, k: int, warps: int, stages: int, wide: bool = False, precision: str = "ieee",
    dtype: torch.dtype = torch.bfloat16,
) -> None:  # fmt: skip
    a, b, out = torch.zeros(1, dtype=dtype), torch.zeros(1, dtype=dtype), torch.zeros(1)
    tile = {"M": m, "N": n, "K": k, "num_warps": warps, "num_stages": stages}
    launch(product_kernel, (1,), a, b, out, 16, WIDE=wide, PRECISION=precision, **tile)


def softmax(width: int) -> None:
    launch(softmax_kernel, (1,), torch.zeros(1), WIDTH=width, num_warps=1)


def ranges(clamped: bool, before: bool = False) -> None:
    a, layout, out = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int32), torch.zeros(1)
    launch(ranges_kernel, (1,), a, layout, out, 64, M=64, CLAMPED=clamped, BEFORE=before, num_warps=4, num_stages=3)


def two_products(m: int, n: int) -> None:
    a, out = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    launch(two_products_kernel, (1,), a, out, 16, M=m, N=n, num_warps=4, num_stages=1)


# What is started, for which architecture, and the fault that it must be told of.
BUILT: dict[str, tuple[int, Callable[[], None], str | None]] = {
    "sound, sm_80": (80, lambda: product(64, 64, 32, 4, 2), None),
    "sound, sm_90": (90, lambda: product(64, 64, 32, 4, 2), None),
    "too few rows for HGMMA": (90, lambda: product(16, 64, 32, 4, 2), None),
    "too few warps for HGMMA": (90, lambda: product(64, 64, 32, 2, 2), "multiplies bf16 matrices without HGMMA"),
    "widened": (90, lambda: product(64, 16, 16, 4, 1, wide=True), "1 of its matrix products are in fp32"),
    "rounded to tf32": (
        80,
        lambda: product(64, 64, 32, 4, 2, precision="tf32", dtype=torch.float32),
        "1 of its matrix products are in tf32",
    ),
    "too many stages, sm_80": (80, lambda: product(128, 128, 128, 8, 4), "the device has 166912"),
    "too many stages, sm_90": (90, lambda: product(128, 128, 128, 8, 5), "the device has 232448"),
    "a loop that begins at a sentinel": (90, lambda: ranges(False), "1 loops around a matrix product may begin or"),
    "a loop whose beginning is bounded": (90, lambda: ranges(True), None),
    "a loop that ends at a sentinel": (90, lambda: ranges(False, True), "1 loops around a matrix product may begin or"),
    "a loop whose end is bounded": (90, lambda: ranges(True, True), None),
    "all products by HGMMA": (90, lambda: two_products(64, 64), None),
    "products by HGMMA and HMMA": (90, lambda: two_products(64, 32), "HMMA"),
    "spills": (80, lambda: softmax(8192), "local loads and stores"),
    "no power of two": (90, lambda: softmax(48), "does not compile"),
}


def build_faulty() -> dict[str, list[str]]:
    found = {}
    for name, (arch, start, _) in BUILT.items():
        with recording((arch // 10, arch % 10)) as started:
            start()
        one = variant("", arch, started[0])
        found[name] = aot.hard_faults(one, aot.build_all([one], 1)[0])
    return found


def attention() -> dict[str, Any]:
    """Faults of attention's passes at head dimension 64 on sm_90, as the Triton that is installed compiles them."""
    layout = prefix_layout([(16, [24, 24])])
    q, k = (torch.zeros(64, heads, 64, dtype=torch.bfloat16) for heads in (32, 8))
    options = (layout, None, 0.125, None, None)
    with recording((9, 0)) as started:
        out, lse = prefix_attention_fwd(q, k, k, *options)
        prefix_attention_bwd(q, q, k, k, out, lse, *options)
    variants = [variant("", 90, one) for one in started]
    made = aot.build_all(variants, 1)
    return {v.kernel.__name__: aot.hard_faults(v, one) for v, one in zip(variants, made, strict=True)}


def forms() -> list[list[str]]:
    """Names of what is compiled for sizes that 16 divides, for one, and for another: of a kernel, and of attention."""
    names = []
    for size in (32, 1, 33):
        with recording((9, 0)) as started:
            launch(size_kernel, (1,), torch.zeros(1), size, 16)
            layout = prefix_layout([(0, [size])])
            q, lse = torch.zeros(size, 2, 64, dtype=torch.bfloat16), torch.zeros(2, size)
            for rows in (None, torch.arange(size)):
                options = (layout, rows, 0.125, None, None)
                prefix_attention_fwd(q, q, q, *options)
                prefix_attention_bwd(q, q, q, q, q, lse, *options)
        names.append([variant("", 90, one).name for one in started])
    return names


def layouts(width: int) -> list[list[str]]:
    """How info_nce's kernels deal their tiles to threads, of rows that lie beside each other and of rows far apart."""
    found = []
    near = torch.zeros(3, width, dtype=torch.bfloat16)
    for q in (near, far_apart(near)):
        with recording((9, 0)) as started:
            loss, *kept = info_nce.info_nce_fwd(q, near, torch.arange(3), 0.2)
            info_nce.info_nce_bwd(loss, q, near, torch.arange(3), *kept, 0.2)
        variants = [variant("", 90, one) for one in started]
        listings = [
            triton.compile(
                ASTSource(v.kernel, v.signature, constexprs=v.constants, attrs=v.attributes),
                target=GPUTarget("cuda", 90, 32),
                options=v.options,
            ).asm["ttgir"]
            for v in variants
        ]
        found.append([line for text in listings for line in text.splitlines() if line.startswith("#blocked")])
    return found


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """What this file says when it is run as a program."""
    done = run(program=Path(__file__))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_rows_far_apart_have_the_kernels_of_others(compiled: dict[str, Any]) -> None:
    """So that tests may ask for the same bits; a multiple of 16 has other kernels than 150."""
    layouts = compiled["layouts"]
    assert all(near and near == far for near, far in layouts)
    assert layouts[0] != layouts[1]


@pytest.mark.parametrize("name", BUILT)
def test_faults_of_built_kernels(compiled: dict[str, Any], name: str) -> None:
    fault, found = BUILT[name][2], compiled["faults"][name]
    assert len(found) == (fault is not None), found
    assert fault is None or fault in found[0], found


def test_sizes_add_no_forms(compiled: dict[str, Any]) -> None:
    first, *others = compiled["forms"]
    assert len(first) == len(set(first)) == 7 and all(other == first for other in others)


def test_attention_keeps_the_hard_rules_under_the_triton_that_is_installed(compiled: dict[str, Any]) -> None:
    """Neither spills nor products by both kinds of tensor cores, and steps within their bounds."""
    assert compiled["attention"] == {name: [] for name in aot.LOOPS}


def test_every_launch_says_whether_products_and_sums_are_fused() -> None:
    """Its default is another from Triton 3.10 on."""
    with recording((9, 0)) as started:
        softmax(64)
    assert started[0].options["enable_fp_fusion"] is True


if __name__ == "__main__":
    made = {"faults": build_faulty(), "forms": forms(), "attention": attention()}
    print(json.dumps(made | {"layouts": [layouts(width) for width in (144, 150)]}))
