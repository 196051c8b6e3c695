"""What adapters save: bytes of a network's weights, gradients and optimizer state, and what the plan says of them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from rmfast.cli import main
from rmfast.launch.cost import Layout, Workload, memory, seconds
from rmfast.launch.hardware import GPUS
from rmfast.models.config import DecoderConfig, decoder_config
from rmfast.models.decoder import Decoder
from rmfast.models.lora import adapt, adapter_weights
from rmfast.models.low_rank import LoraOptions
from rmfast.models.network import Network
from rmfast.tasks.build.adapter import state_bytes
from tests.runs import write_model, write_rows
from tests.tiny import CONFIGS, hf_config

SMOLLM2 = decoder_config(
    LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
)
"""Of SmolLM2-135M."""


def network_of(config: DecoderConfig, options: LoraOptions | None, dtype: torch.dtype = torch.float32) -> Network:
    """On the meta device: sizes alone."""
    with torch.device("meta"):
        network = Network(Decoder(config, dtype=dtype))
        if options is not None:
            adapt(network, options, seed=0)
    return network


def held(network: Network) -> dict[str, int]:
    """Bytes of weights, of their fp32 gradients and of two moments each."""
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert all(p.dtype == torch.float32 for p in network.parameters() if p.requires_grad)
    return {"weights": sum(p.nbytes for p in network.parameters()), "gradients": 4 * trained, "optimizer": 8 * trained}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_of_adapters_are_counted(name: str) -> None:
    config = decoder_config(hf_config(name))
    some = ("o_proj", "down_proj") if config.fused else ("v_proj", "o_proj", "up_proj", "down_proj")
    for options in (LoraOptions(rank=3), LoraOptions(rank=5, targets=some)):
        network = network_of(config, options)
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        assert trained == adapter_weights(config, options) + config.width


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1 / 3), (torch.bfloat16, 1 / 6)])
def test_rank_16_takes_a_third_of_full_training(dtype: torch.dtype, share: float) -> None:
    config, options = SMOLLM2, LoraOptions(rank=16)
    full, lora = held(network_of(config, None, dtype)), held(network_of(config, options, dtype))
    assert sum(lora.values()) <= share * sum(full.values())
    # As the log and the plan say; norms and head are fp32, and no part of either's count of frozen weights.
    adapters, network = adapter_weights(config, options), network_of(config, options)
    whole = sum(p.numel() for p in network.parameters())
    said = state_bytes(whole, adapters + config.width, dtype.itemsize)
    load = Workload(4096, 64, 4096, 10**6, activation=dtype.itemsize, adapters=adapters)
    planned = memory(config, Layout("ddp", data=1), load)
    for key, size in lora.items():
        assert said[key] == pytest.approx(size, rel=1e-3) and planned[key] == pytest.approx(size, rel=1e-3)
    sharded = memory(config, Layout("fsdp", data=4), load)
    assert sharded["weights"] == pytest.approx(lora["weights"] / 4, rel=1e-3)
    one, gpu = Layout("ddp", data=2), GPUS["h100"]
    plain = seconds(config, one, Workload(4096, 64, 4096, 10**6, activation=dtype.itemsize), gpu)
    adapted = seconds(config, one, load, gpu)
    assert 0.6 < adapted["compute"] / plain["compute"] < 0.75 and adapted["optimizer"] < plain["optimizer"] / 20


def test_a_plan_of_adapters_is_of_native_engines_and_smaller(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", 4)
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {{path: {tmp_path / 'model'}}}\ndata: {{train: {tmp_path / 'rows.jsonl'}}}\n")
    made = []
    for adapter in ("none", "lora"):
        out = str(tmp_path / f"{adapter}.json")
        assert main(["plan", str(config), "--gpus", "2", "--out", out, "--model.adapter", adapter]) == 0
        made.append(json.loads(Path(out).read_text())["plans"])
    full, lora = ({(p["layout"]["engine"], p["layout"]["recompute"]): p["bytes_by"] for p in plans} for plans in made)
    assert {engine for engine, _ in lora} == {"ddp", "fsdp"} and "megatron" in {engine for engine, _ in full}
    for key, sizes in lora.items():
        assert sizes["gradients"] < full[key]["gradients"] and sizes["optimizer"] < full[key]["optimizer"]
