#!/usr/bin/env bash
# A good guess: the answers that TRL's training templates mark (assistant_only_loss) begin where generation begins, behind
# what add_generation_prompt renders. Those of Llama 3 do. Of others the marks reach back into the prompt: the newline of
# Qwen2.5's header, DeepSeek-V3's <｜Assistant｜>, Nemotron's <think> are learnt, which a policy is always given. Losses and
# accuracies of tokens under these marks are those of other tokens than an answer's.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0
venv/bin/pip install -q transformers==5.23.0
venv/bin/pip install -q --no-deps trl==1.16.0
cat > marks.py <<'P'
from importlib.metadata import distribution, version
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="!", eos_token='"')
folder = Path(distribution("trl").locate_file("trl/chat_templates"))
print("trl", version("trl"), "transformers", version("transformers"))
turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Paris"}]
for name in ("llama3", "qwen2_5", "deepseekv3", "nemotron_3_nano"):
    tokenizer.chat_template = (folder / f"{name}_training.jinja").read_text()
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    ids, first = whole["input_ids"], whole["assistant_masks"].index(1)
    shared = next(n for n, (one, other) in enumerate(zip(ids, [*prompt, -1])) if one != other)
    print(f"{name}: learnt of the prompt: {tokenizer.decode(ids[first:shared])!r}")
P
venv/bin/python marks.py 2> /dev/null | tee said
diff said - <<'S'
trl 1.16.0 transformers 5.23.0
llama3: learnt of the prompt: ''
qwen2_5: learnt of the prompt: '\n'
deepseekv3: learnt of the prompt: '<｜Assistant｜>'
nemotron_3_nano: learnt of the prompt: '<think>'
S
