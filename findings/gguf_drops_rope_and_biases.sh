#!/usr/bin/env bash
# A good guess: AutoModelForCausalLM.from_pretrained(folder, gguf_file=...) loads the model that is in a GGUF file, or
# says what it cannot read. What happens: a Llama 3.1 file says its RoPE scaling in the tensor rope_freqs.weight, linear
# and YaRN scaling in the keys llama.rope.scaling.*, and a Llama with biases has tensors blk.N.attn_q.bias. transformers
# reads none of them and warns of nothing: the config has rope_type "default" and no biases, and logits are another
# model's.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0
"$work/venv/bin/pip" install -q transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
cd "$work"
venv/bin/python - <<'PY'
import sys
from pathlib import Path

import gguf
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

transformers.utils.logging.disable_progress_bar()
print("transformers", transformers.__version__, "gguf", gguf.__version__ if hasattr(gguf, "__version__") else "0.19.0")
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
HEADS = 4


def write(model: LlamaForCausalLM, path: Path, scaling: dict, freqs: torch.Tensor | None) -> None:
    """As llama.cpp's convert_hf_to_gguf does."""
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(c.hidden_size // HEADS)
    writer.add_vocab_size(c.vocab_size)
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
    for name, tensor in model.state_dict().items():
        stem, kind = name.rsplit(".", 1)
        if "q_proj" in stem or "k_proj" in stem:  # the order in which llama.cpp rotates
            tensor = tensor.reshape(HEADS, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        if stem in TOP:
            target = TOP[stem]
        else:
            _, _, layer, part = stem.split(".", 3)
            target = f"blk.{layer}.{LAYER[part]}"
        writer.add_tensor(f"{target}.{kind}", tensor.contiguous().numpy())
    if freqs is not None:
        writer.add_tensor("rope_freqs.weight", freqs.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
CASES = {
    "plain": ({}, {}),
    "llama3": ({"rope_parameters": LLAMA3}, {}),
    "linear": ({"rope_parameters": LINEAR}, {"type": "linear", "factor": 4.0}),
    "biases": ({"attention_bias": True}, {}),
}
ids = torch.randint(0, 64, (1, 200), generator=torch.Generator().manual_seed(0))
changed = False
for name, (options, scaling) in CASES.items():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=4096,
                         tie_word_embeddings=False, initializer_range=0.3, **options)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_()
    freqs = None
    if name == "llama3":
        plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2).float() / 16)
        freqs = plain / model.model.rotary_emb.inv_freq
    folder = Path(name)
    folder.mkdir()
    write(model, folder / "model.gguf", scaling, freqs)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        difference = (loaded(ids).logits - model(ids).logits).abs().max().item()
    print(f"{name:8s} rope read: {loaded.config.rope_parameters['rope_type']:8s} "
          f"biases read: {loaded.config.attention_bias!s:6s} largest difference of a logit: {difference:.2e}")
    changed |= (difference > 1e-3) != (name != "plain")
sys.exit("the behaviour has changed" if changed else 0)
PY
