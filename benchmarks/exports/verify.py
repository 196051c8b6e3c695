"""Exports of every family, read by other versions of transformers: same ids, same scores (`make verify-exports`).

Usage: `python -m benchmarks.exports.verify [--json OUT] [--environments FOLDER]`, from the root of the repository.
Tiny models with random weights are exported, and read.py scores them in an environment for each version, which is made
once in FOLDER; torch is this environment's. Exits with 1 if an id differs, or a score by more than rounding.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, processors, trainers
from tokenizers.normalizers import Prepend, Replace
from tokenizers.normalizers import Sequence as Normalizers
from transformers.utils import logging

from rmfast.checkpoint.export import ModelParts, write_model
from rmfast.data.tokenizer import load_tokenizer
from rmfast.models.hf import load_network
from tests.tiny import CONFIGS, hf_model

VERSIONS = ("4.57.6", "5.17.0", "5.24.0")
ROOT = Path(__file__).resolve().parents[2]
BYTE_LEVEL = ROOT / "configs" / "quickstart" / "decoder"
TEXTS = (
    "The cat sat on the mat.<|im_end|>",
    "  In 2024, it's 12.5 % héé 你好 🙂\n\n\tand so on <|im_start|>user\nhi<|im_end|>",
    "a longer one: " + "the sea, the sea, " * 40 + "<|im_end|>",
)
TOLERANCE = 1e-5  # of the largest score: fp32 rounding
VOCABULARY = 4096
FACTORS = [1.0, 1.5, 3.0, 8.0]
DIVISORS = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": FACTORS, "long_factor": FACTORS,
    "attention_factor": 1.0, "original_max_position_embeddings": 4096,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any], str]] = {  # name: of a config, changes to it, tokenizer
    **{name: (name, {}, "byte-level") for name in CONFIGS},
    "llama-theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}, "byte-level"),
    "llama-head-dim": ("llama", {"head_dim": 20}, "byte-level"),
    "llama-three-heads": ("llama", {"num_labels": 3}, "byte-level"),
    "llama-sentencepiece": ("llama", {}, "sentencepiece"),
    "llama-divisors": ("llama", {"rope_parameters": DIVISORS}, "byte-level"),
}


def write_sentencepiece(folder: Path) -> None:
    """A tokenizer as Llama 2's, that puts an eos after each text; its class in transformers 4 would leave it out."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = Normalizers([Prepend("▁"), Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    ends = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=ends
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"add_bos_token": True, "add_eos_token": True}))


def write_exports(root: Path, scratch: Path) -> dict[str, Any]:
    """Exports every case into `root`; ids and scores that are expected of it."""
    (root / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    expected = {}
    for name, (config, changes, kind) in CASES.items():
        source = scratch / name
        model = hf_model(config, vocab_size=VOCABULARY, **changes)
        model.save_pretrained(source)
        if kind == "byte-level":
            for file in BYTE_LEVEL.glob("*token*"):
                shutil.copy(file, source)
        else:
            write_sentencepiece(source)
        tokenizer = load_tokenizer(source)
        network, hf = load_network(source)
        state = dict(network.state_dict())
        write_model(root / name, ModelParts(hf, network.config, state, tokenizer, torch.float32))
        ids = [tokenizer(text)["input_ids"] for text in TEXTS]
        with torch.no_grad():  # unpadded, one by one: what rmfast is tested to give
            hidden = [model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in ids]
            expected[name] = {"ids": ids, "scores": [model.score(row).tolist() for row in hidden]}
    return expected


def environment(folder: Path, version: str) -> Path:
    """The interpreter of an environment with a version of transformers, and with this environment's torch behind it."""
    python = folder / version / "bin" / "python"
    done = folder / version / "done"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / version], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"transformers=={version}"], check=True)
        site = next((folder / version / "lib").glob("python*/site-packages"))
        (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")  # after its own packages
        done.touch()
    return python


def compare(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Of each export: whether the ids are the same, and the largest difference of a score, relative to the largest."""
    table = {}
    for name, want in expected.items():
        got = found[name]
        scores = torch.tensor(want["scores"])
        same = got["ids"] == want["ids"] and got["pad"][0] == got["pad"][1]
        table[name] = {"same_ids": same, "scores": None, "pipeline": None}
        if same:
            for key in ("scores", "pipeline"):
                difference = (torch.tensor(got[key]) - scores).abs().max() / scores.abs().max()
                table[name][key] = float(f"{difference:.1e}")
    return table


def agrees(line: dict[str, Any]) -> bool:
    return line["same_ids"] and max(line["scores"], line["pipeline"]) <= TOLERANCE


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--environments", type=Path, default=ROOT / "runs" / "transformers", metavar="FOLDER")
    args = parser.parse_args(arguments)
    logging.disable_progress_bar()
    result: dict[str, Any] = {"tolerance": TOLERANCE, "versions": {}}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "exports"
        root.mkdir()
        expected = write_exports(root, Path(scratch))
        for version in VERSIONS:
            command = [environment(args.environments, version), Path(__file__).with_name("read.py"), root]
            clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=clean).stdout)
            table = compare(expected, found["read"])
            result["torch"], result["versions"][found["transformers"]] = found["torch"], table
            odd = [name for name, line in table.items() if not agrees(line)]
            worst = max(max(line["scores"] or 0.0, line["pipeline"] or 0.0) for line in table.values())
            print(
                f"transformers {version}: {len(table)} exports, largest difference {worst:.1e}, wrong: {odd or 'none'}"
            )
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(not agrees(line) for table in result["versions"].values() for line in table.values()))


if __name__ == "__main__":
    sys.exit(main())
