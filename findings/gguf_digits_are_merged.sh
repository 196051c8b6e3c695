#!/usr/bin/env bash
# A good guess: transformers reads the tokenizer of a GGUF file as the model has it. The file names how texts are split
# before bytes are merged (tokenizer.ggml.pre). SmolLM and StarCoder split digits one by one, but transformers does not
# know these names and takes GPT-2's way, which keeps runs of digits together: where the vocabulary has a merge of two
# digits, "12" becomes one token that the model never saw. No warning is printed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0
venv/bin/pip install -q transformers==5.23.0 gguf==0.19.0
cat > make.py <<'P'
import sys

from gguf import GGUFWriter, TokenType
from tokenizers.pre_tokenizers import ByteLevel

writer = GGUFWriter(sys.argv[1], "llama")
writer.add_context_length(64)
writer.add_embedding_length(8)
writer.add_block_count(1)
writer.add_feed_forward_length(8)
writer.add_head_count(1)
writer.add_head_count_kv(1)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(258)
tokens = [*sorted(ByteLevel.alphabet()), "12", "<end>"]
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre(sys.argv[2])
writer.add_token_list(tokens)
writer.add_token_types([TokenType.NORMAL] * 257 + [TokenType.CONTROL])
writer.add_token_merges(["1 2"])
writer.add_eos_token_id(257)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
P
mkdir gpt-2 smollm
venv/bin/python make.py gpt-2/model.gguf gpt-2
venv/bin/python make.py smollm/model.gguf smollm
venv/bin/python - <<'P'
import transformers

read = {
    name: transformers.AutoTokenizer.from_pretrained(name, gguf_file="model.gguf").tokenize("12")
    for name in ("gpt-2", "smollm")
}
print("transformers", transformers.__version__)
print('"12" by tokenizer.ggml.pre:', read, "(SmolLM's own tokenizer.json splits digits: ['1', '2'])")
assert read["smollm"] == read["gpt-2"] == ["12"], "the behaviour has changed"
P
