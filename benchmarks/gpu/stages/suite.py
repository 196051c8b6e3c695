"""The tests that a GPU runs without Triton's interpreter: attention alone, one test of each op, then every file."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import ROOT, Part, Settings

ALONE = "tests/kernels/test_long_prefixes.py"
"""Attention in bf16 on prompts of hundreds of tokens, where a wrong address ends the process: before anything else."""
# A test of each op that says most in least time. Each has a process, for one that loses the device loses it alone.
ONE_OF_EACH = {
    "prefix_attention": "test_prefix_attention_kernel.py::test_strided_views_of_one_product",
    "flash": "test_flash_attention.py::test_on_the_gpu[64]",
    "linear_log_prob": "test_linear_log_prob.py::test_bf16_maths_is_fp32",
    "info_nce": "test_info_nce.py::test_strided_inputs",
    "rms_norm": "test_rms_norm.py::test_values_and_gradients",
    "swiglu": "test_swiglu.py::test_values_and_gradient",
    "rope": "test_rope.py::test_bf16_values_pass_as_they_are",
    "score_head": "test_score_head.py::test_scores_of_bf16_are_fp32",
    "ranking_loss": "test_ranking_loss_kernel.py::test_sums_of_many_blocks",
    "difference_loss": "test_difference_loss.py::test_strided",
    "sinkhorn": "test_sinkhorn.py::test_no_gradient_and_strides",
    "swapped_prediction_loss": "test_swapped_prediction_loss.py::test_strided_inputs",
    "gae": "test_gae.py::test_strided_and_int32",
    "policy_loss": "test_clipped_losses.py::test_ties_share_the_gradient",
    "decode_attention": "test_decode_attention.py::test_pools_within_a_larger_one[triton]",
    "multi_tensor": "test_multi_tensor.py::test_gradient_norm",
}
ONE = "one test of "
LEFT_OUT = ("tests/kernels/test_aot.py", "tests/kernels/test_compiled.py")  # compile without a GPU, in CI
MEGATRON = "tests/megatron/test_one_process.py"
MORE = ("tests/parallel/test_graphs.py", "tests/rollout/test_steps.py", "tests/test_csrc.py", MEGATRON)
LONG = {"test_prefix_attention_kernel.py": 120.0, "test_flash_attention.py": 80.0}


def files() -> list[str]:
    """Test files, the longest first."""
    found = [p for folder in ("kernels", "models") for p in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    names = [str(p.relative_to(ROOT)) for p in found] + list(MORE)
    chosen = [name for name in names if name not in (*LEFT_OUT, ALONE)]
    return sorted(chosen, key=lambda name: -LONG.get(Path(name).name, 0.0))


def part(name: str, test: str, seconds: float, *needs: str, shared: bool = True) -> Part:
    return Part("suite", name, seconds, ("benchmarks.gpu.testing", test), shared=shared, needs=("tests", *needs))


def parts(settings: Settings) -> list[Part]:
    """Attention alone, a part for one test of each op and for each file; two small files at the tiny size."""
    if settings.tiny:
        return [part(name, f"tests/kernels/{name}.py", 15.0, shared=False) for name in ("test_tables", "test_common")]
    ones = [part(f"{ONE}{op}", f"tests/kernels/{test}", 25.0) for op, test in ONE_OF_EACH.items()]
    needs = {"tests/kernels": (), "tests/megatron": ("training", "megatron")}
    every = [
        part(Path(f).stem, f, LONG.get(Path(f).name, 40.0), *needs.get(str(Path(f).parent), ("training",)))
        for f in files()
    ]
    return [part(Path(ALONE).stem, ALONE, 45.0, shared=False), *ones, *every]


def verdicts(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the tests that have run say of each file in tests/kernels: its first failure, "passed", or "passed: TEST"
    where one test has run alone."""
    found: dict[str, str] = {}
    for op, test in ONE_OF_EACH.items():
        file, _, one = test.partition("::")
        _judge(found, file, records.get(f"{ONE}{op}"), f"passed: {one}")
    for name, record in records.items():
        if not name.startswith(ONE):
            _judge(found, f"{name}.py", record, "passed")
    alone = records.get(Path(ALONE).stem, {}).get("result", {})
    for failure in alone.get("failures", ())[:1]:
        found["test_prefix_attention_kernel.py"] = f"FAILED {failure['test']}"
    return found


def _judge(found: dict[str, str], file: str, record: dict[str, Any] | None, passed: str) -> None:
    if record is None:
        return
    if record["status"] != "done":
        found[file] = f"FAILED {file}: {record['status']}"
    elif record["result"]["failures"]:
        found[file] = f"FAILED {record['result']['failures'][0]['test']}"
    elif record["result"]["passed"]:
        found[file] = passed


def lines(records: dict[str, dict[str, Any]]) -> list[str]:
    """Totals, and what failed."""
    done = [record["result"] for record in records.values() if record["status"] == "done"]
    total = {key: sum(result[key] for result in done) for key in ("passed", "failed", "skipped")}
    out = [f"{len(done)} parts: {total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped"]
    return out + [f"  FAILED {f['test']}: {f['why'][:120]}" for result in done for f in result["failures"]]
