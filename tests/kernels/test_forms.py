"""How many forms of its kernels Triton compiles for the packs of a run, by the JIT's own rules.

Run as a program this file starts the kernels of some reward models on packs of many lengths, without running them: in
the tests' own process Triton may be interpreted.
"""

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import jit

from rmfast.data.loader import totals_of
from rmfast.kernels import common
from rmfast.kernels.launch import Launch, recording
from rmfast.models.config import DecoderConfig
from rmfast.models.decoder import Decoder
from rmfast.models.network import Network
from rmfast.models.rope import Rope
from rmfast.objectives.reward import RewardObjective
from tests.kernels.test_aot import run
from tests.kernels.variants import kernels_of_package
from tests.tiny import VOCABULARY, group_of, pack_of, table_of

# Arguments that are another number in every batch.
SIZES = {
    "queries", "tokens", "rows", "edges", "scores", "owns", "others", "parts", "programs", "blocks", "samples",
}  # fmt: skip
PACKS = 24
PER_PACK = 24  # compiled forms, of all kernels together
# Models whose packs start other kernels, or the same in other forms: what is changed of the config, and whether the LM
# loss is computed.
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({}, False),
    "norms of queries and keys": ({"qk_norm": "head"}, False),
    "a sliding window in later layers": (
        {"layers": 3, "windows": (None, 24, 24), "ropes": (Rope((1.0,) * 8),) * 3},
        False,
    ),
    "LM loss": ({}, True),
}


def specialised() -> list[str]:
    """Kernel and argument where Triton compiles a size in: another form where it is 1 or a multiple of 16."""
    found = []
    for name, module in kernels_of_package():
        kernel = getattr(importlib.import_module(module), name)
        found += [
            f"{module}: {name}: {p.name}"
            for p in kernel.params
            if p.name in SIZES and not p.is_constexpr and not p.do_not_specialize
        ]
    return found


def form(started: Launch) -> tuple[str, str]:
    """A kernel's module, and what the JIT tells its forms apart by."""
    kernel = started.kernel
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, CUDABackend(GPUTarget("cuda", 90, 32)))
    _, specialisation, options = bind(*started.arguments, **started.options)
    return kernel.fn.__module__, f"{kernel.__name__} {specialisation} {sorted(options.items())}"


def network(changes: dict[str, Any], lm: bool) -> Network:
    sizes: dict[str, Any] = {
        "family": "llama", "vocabulary": VOCABULARY, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2,
        "head_dim": 16, "ffn": 128, "norm_eps": 1e-5, "init_std": 0.02, "qkv_bias": False, "out_bias": False,
        "mlp_bias": False, "tied": True, "windows": (None, None), "ropes": (Rope((1.0,) * 8),) * 2,
    }  # fmt: skip
    made = Network(Decoder(DecoderConfig(**sizes | changes), dtype=torch.bfloat16, impl="triton"), lm=lm)
    for parameter in made.parameters():
        torch.nn.init.zeros_(parameter)
    return made


def forms_of_packs(changes: dict[str, Any], lm: bool) -> dict[str, Any]:
    """Forms by kernel, and settings of `enable_fp_fusion`, over forward and backward of packs of ragged groups."""
    common.INTERPRETED = True  # Triton is taken for CPU tensors
    generator, model = np.random.default_rng(0), network(changes, lm)
    objective = RewardObjective(impl="triton", lm=float(lm))
    forms: set[tuple[str, str]] = set()
    fused: set[Any] = set()
    for number in range(PACKS):
        groups = [
            group_of(generator, int(generator.integers(1, 60)), generator.integers(1, 40, 2).tolist(), [(0, 1)])
            for _ in range(int(generator.integers(1, 9 + number % 16)))
        ]
        pack, table = pack_of(groups, lm=lm), table_of(groups)
        with recording((9, 0)) as started:
            outputs = model(pack, objective.reads(pack))
            objective(outputs, pack, totals_of(table, np.arange(len(table))))[0].backward()
        forms |= {form(one) for one in started}
        fused |= {one.options.get("enable_fp_fusion") for one in started}
    return {"forms": Counter(name.split()[0] for _, name in forms), "fused": sorted(fused)}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = run(program=Path(__file__))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_kernel_is_compiled_for_a_size(found: dict[str, Any]) -> None:
    assert found["specialised"] == []


@pytest.mark.parametrize("model", MODELS)
def test_the_packs_of_a_run_need_few_forms(found: dict[str, Any], model: str) -> None:
    forms = found["packs"][model]["forms"]
    assert sum(forms.values()) <= PER_PACK, forms
    assert ("linear_log_prob_bwd_kernel" in forms) == (model == "LM loss")
    plain = found["packs"]["plain"]["forms"]
    assert model == "plain" or forms != plain  # what is changed does show


@pytest.mark.parametrize("model", MODELS)
def test_every_launch_of_a_pack_says_whether_products_and_sums_are_fused(found: dict[str, Any], model: str) -> None:
    assert found["packs"][model]["fused"] == [True]


if __name__ == "__main__":
    packs = {name: forms_of_packs(*model) for name, model in MODELS.items()}
    print(json.dumps({"specialised": specialised(), "packs": packs}))
