"""Checkpoints of policies as a run writes them."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from rmfast.checkpoint.export import choose_pad_token, write_tokenizer
from rmfast.checkpoint.saver import Saver
from rmfast.models.hf import load_network
from rmfast.models.save import save_config
from rmfast.parallel.engine import Shard
from rmfast.parallel.world import World
from rmfast.rollout.policy import end_ids


def save_policy_checkpoint(run: Path, source: Path, step: int = 3, **more: Tensor) -> Path:
    """`run/checkpoints/step-N` of the policy in a folder, beside a critic and optimizer state.

    Args:
        more: of its weights.
    """
    network, hf = load_network(source, heads=0, lm=True)
    tokenizer = AutoTokenizer.from_pretrained(source)
    ends = end_ids(source, hf, tokenizer)
    pad = choose_pad_token(tokenizer, network.config.vocabulary, ends)

    def write_extras(folder: Path) -> None:
        write_tokenizer(tokenizer, folder, pad)
        save_config(folder, hf, network.config, heads=0, dtype=torch.float32, pad_token_id=pad, ends=ends)

    weights = {f"model/{name}": parameter.detach() for name, parameter in network.named_parameters()}
    weights |= {"critic/model/head.weight": torch.zeros(1, 4), "exp_avg/norm.weight": torch.zeros(4)}
    weights |= {f"model/{name}": tensor for name, tensor in more.items()}
    state = {name: Shard(tensor, 0, tuple(tensor.shape)) for name, tensor in weights.items()}
    run.mkdir(exist_ok=True)
    saver = Saver(run / "checkpoints", World(), extras=write_extras, keep=2)
    saver.save(step, state, {})
    assert not saver.wait()
    return run / "checkpoints" / f"step-{step}"
