"""What `verify.py` runs in an environment with another transformers: ids and scores of every exported folder.

Usage: `python read.py FOLDER`, which holds texts.json and the exports. Prints one JSON object; rmfast is not used.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils import logging


@torch.no_grad()
def read(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Of each text its ids, its scores, and the scores that a text-classification pipeline gives."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    by_label = [{entry["label"]: entry["score"] for entry in found} for found in classify(texts)]
    return {
        "ids": ids,
        "scores": [model(torch.tensor([row])).logits[0].float().tolist() for row in ids],
        "pipeline": [[found[f"LABEL_{i}"] for i in range(len(found))] for found in by_label],
        "pad": [tokenizer.pad_token_id, model.config.pad_token_id],
    }


def main() -> None:
    """Entry point."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    root = Path(sys.argv[1])
    texts = json.loads((root / "texts.json").read_text(encoding="utf-8"))
    found = {folder.name: read(folder, texts) for folder in sorted(root.iterdir()) if folder.is_dir()}
    print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__, "read": found}))


if __name__ == "__main__":
    main()
