"""A random decoder of two layers, for the harness at its tiny size: `python -m benchmarks.gpu.tiny_model FOLDER`."""

import shutil
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.parts import ROOT


def main(folder: str) -> None:
    """Entry point."""
    partial = Path(folder).with_suffix(".partial")
    shutil.copytree(ROOT / "configs" / "quickstart" / "decoder", partial, dirs_exist_ok=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2, bos_token_id=None, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(partial)
    partial.rename(folder)


if __name__ == "__main__":
    main(sys.argv[1])
