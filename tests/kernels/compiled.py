"""What the compiler made of a kernel: its figures, read from the listings of Triton and of NVIDIA's tools."""

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SENTINEL = 2**30  # a constant as large is no index: it stands for "none"
INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)(?:[^;]*?\b(0x[0-9a-f]+))?", re.MULTILINE
)
DEFINITION = re.compile(r"^\s*%([\w$]+)(?::\d+)? = \"?([\w.]+)\"?(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Built:
    """What the compiler made of a variant. `spills` counts loads and stores of local memory, `hgmma` and `hmma` matrix
    instructions, `loop` the instructions of the longest innermost loop with one (0: none). Of its matrix products,
    `rows` are those of the largest tile of bf16, 0 if none; `widened` counts the products of fp32 if the kernel is
    given bf16, `tf32` those that are rounded to it. fp16 counts as bf16. `sentinels` counts the loops around a product
    that may begin or end at one. `seconds` are the processor's."""

    registers: int
    stack: int
    shared: int
    spills: int
    hgmma: int
    hmma: int
    loop: int
    rows: int
    widened: int
    tf32: int
    sentinels: int
    seconds: float


def longest_loop(listing: str) -> int:
    """Instructions of the longest loop that holds a matrix instruction and no other such loop, in a listing of SASS.

    A loop is what lies between the target of a branch backwards and the branch.
    """
    found = [(int(at, 16), name, int(target or "0", 16)) for at, name, target in INSTRUCTION.findall(listing)]
    products = [at for at, name, _ in found if name in ("HGMMA", "HMMA")]
    loops = [(target, at) for at, name, target in found if name == "BRA" and target < at]
    loops = [(low, high) for low, high in loops if any(low <= at <= high for at in products)]
    inner = [loop for loop in loops if not any(o != loop and loop[0] <= o[0] and o[1] <= loop[1] for o in loops)]
    return max((sum(low <= at <= high for at, _, _ in found) for low, high in inner), default=0)


def _loops(listing: str) -> Iterator[tuple[str, str, str]]:
    """(lower bound, upper bound, body) of each loop in a listing of Triton's IR, whose regions end at the indent that
    they begin at."""
    for found in re.finditer(r"^( *)(?:%\S+ = )?scf\.for .*? = %([\w$#]+) to %([\w$#]+) .*$", listing, re.MULTILINE):
        rest = listing[found.end() :]
        yield found[2], found[3], rest[: rest.index(f"\n{found[1]}}}")]


def sentinel_loops(listing: str) -> int:
    """Loops around a matrix product, in a listing of Triton's IR before it is pipelined, that may begin or end at a
    sentinel.

    A pipeline asks in 32 bits whether the second iteration begins before the end of the range, with no branch around
    the loads: after a first one near 2^31 the answer is wrong, even where the range is empty. A loop that ends there
    goes on for 2^31 steps. Followed back from both bounds is all that they are computed from within the kernel. What a
    minimum with a sound value bounds is sound; indices that the kernel is given count as sound.
    """
    defined = {name: (operation, rest) for name, operation, rest in DEFINITION.findall(listing)}

    @functools.cache
    def huge(name: str) -> bool:
        operation, rest = defined.get(name.split("#")[0], ("", ""))
        if operation == "arith.constant":
            return any(int(number) >= SENTINEL for number in re.findall(r"\b\d+\b", rest.split(" : ")[0]))
        if operation == "arith.cmpi":
            return False
        operands = [huge(operand) for operand in re.findall(r"%([\w$#]+)", rest)]
        return bool(operands) and (all(operands) if operation == "arith.minsi" else any(operands))

    return sum(huge(low) or huge(high) for low, high, body in _loops(listing) if "tt.dot" in body)


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([BINARIES / name, *arguments], capture_output=True, text=True, check=True).stdout


def _processor_seconds() -> float:
    """Of this process and of the tools that it has run: unlike the clock's, they are the same on a busy machine."""
    return sum(os.times()[:4])


def build(
    kernel: Any, signature: dict[str, Any], constants: dict[str, Any], attributes: dict[tuple[int, ...], Any],
    options: dict[str, Any], arch: int,
) -> Built:  # fmt: skip
    """Compile a kernel for an architecture and read the result."""
    start = _processor_seconds()
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    listing = compiled.asm["ttir"]
    products = re.findall(r"tt\.dot (.*) : tensor<(\d+)x\d+x(\w+)> \*", listing)
    rows = max((int(rows) for _, rows, dtype in products if dtype in ("bf16", "f16")), default=0)
    given_half = not {"*bf16", "*fp16"}.isdisjoint(signature.values())
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
        # Disassembling takes as long as compiling a small kernel: only where there can be something to count.
        sass = _tool("cuobjdump", "--dump-sass", file.name) if rows or numbers["STACK"] else ""
    opcodes = [name for _, name, _ in INSTRUCTION.findall(sass)]
    return Built(
        registers=numbers["REG"],
        stack=numbers["STACK"],
        shared=compiled.metadata.shared,
        spills=opcodes.count("LDL") + opcodes.count("STL"),
        hgmma=opcodes.count("HGMMA"),
        hmma=opcodes.count("HMMA"),
        loop=longest_loop(sass),
        rows=rows,
        widened=sum(dtype == "f32" for _, _, dtype in products) if given_half else 0,
        tf32=sum("tf32" in how for how, _, _ in products),
        sentinels=sentinel_loops(listing),
        seconds=_processor_seconds() - start,
    )
