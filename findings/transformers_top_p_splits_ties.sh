#!/usr/bin/env bash
# A good guess: what a filter keeps depends on logits alone, so tokens with equal logits are kept or left together, as
# TopKLogitsWarper does it (it keeps more than k where the k-th is tied). TopPLogitsWarper sorts, and cuts the sorted
# list: of equal logits it keeps some and drops others, by their place in the vocabulary and not by their probability.
# Ties are common in bf16, where logits near 16 are 0.125 apart. Who compares another sampler's kept set with it must
# leave tied tokens out.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0
venv/bin/pip install -q transformers==5.23.0
cat > filters.py <<'P'
from importlib.metadata import version

import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

print("transformers", version("transformers"))
logits = torch.tensor([[1.0, 1.0, 1.0, 1.0, -9.0]])
for name, warper in (("top-k 2", TopKLogitsWarper(2)), ("top-p 0.5", TopPLogitsWarper(0.5))):
    kept = warper(None, logits.clone()).isfinite()[0].nonzero().flatten().tolist()
    print(f"{name} of four equal logits and a small one keeps", kept)
P
venv/bin/python filters.py 2> /dev/null | tee said
diff said - <<'S'
transformers 5.23.0
top-k 2 of four equal logits and a small one keeps [0, 1, 2, 3]
top-p 0.5 of four equal logits and a small one keeps [1, 2, 3]
S
