#!/usr/bin/env bash
# A good guess: a folder that transformers 5 saves loads in transformers 4.57 with the same scores, or fails aloud.
# What happens: version 5 writes RoPE as rope_parameters alone; 4.57 does not know the key, keeps it as a stray attribute
# and computes with rope_theta 10,000 and no scaling, without a warning: other scores from the same weights. The tokenizer
# does fail: its class "TokenizersBackend" is unknown there, and under the class's old name the list in
# extra_special_tokens is the next error (4.57 wants a mapping; where protobuf is missing, an ImportError hides that).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 5.23.0 4.57.6; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install -q torch==2.13.0
    "$work/$version/bin/pip" install -q "transformers==$version"
done
cd "$work"
cat > score.py <<'PY'
import sys

import torch
import transformers
from transformers import AutoModelForSequenceClassification

transformers.utils.logging.set_verbosity_info()
transformers.utils.logging.disable_progress_bar()
model = AutoModelForSequenceClassification.from_pretrained("model").eval()
ids = torch.randint(2, 64, (1, 100), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    score = model(ids).logits.item()
frequencies = model.model.rotary_emb.inv_freq
print(f"transformers {transformers.__version__}: score {score:.4f}, second RoPE frequency {frequencies[1].item():.4f}")
open(f"score-{sys.argv[1]}", "w").write(str(score))
PY
5.23.0/bin/python - <<'PY'
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

torch.manual_seed(0)
rope = {"rope_type": "default", "rope_theta": 500000.0}
config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=4, rope_parameters=rope, num_labels=1, pad_token_id=0, initializer_range=0.3)
LlamaForSequenceClassification(config).save_pretrained("model")
backend = Tokenizer(models.WordLevel({"<eos>": 0, "<a>": 1, "a": 2}, unk_token="<eos>"))
PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", additional_special_tokens=["<a>"]).save_pretrained(
    "tokenizer"
)
PY
5.23.0/bin/python score.py 5 2> /dev/null
4.57.6/bin/python score.py 4 2> log
echo "lines of 4.57.6 that name rope as unread: $(grep -ciE 'rope.*(unrecognized|unused|ignored)' log || true)"
4.57.6/bin/python -c 'from transformers import AutoTokenizer; AutoTokenizer.from_pretrained("tokenizer")' 2> log && {
    echo "the behaviour has changed: the tokenizer loads"; exit 1; }
tail -n 1 log
sed -i 's/TokenizersBackend/PreTrainedTokenizerFast/' tokenizer/tokenizer_config.json
4.57.6/bin/python -c 'from transformers import AutoTokenizer; AutoTokenizer.from_pretrained("tokenizer")' 2> log && {
    echo "the behaviour has changed: the tokenizer loads under its old class"; exit 1; }
grep -m 1 '^AttributeError' log
5.23.0/bin/python -c 'import sys; a, b = (float(open(f"score-{v}").read()) for v in "54"); sys.exit(abs(a - b) < 1e-3)' || {
    echo "the behaviour has changed: the scores agree"; exit 1; }
