"""What a reward step with adapters takes, beside PEFT's: CPU seconds of one thread, and bytes.

    python -m benchmarks.lora_cost [--rounds 3] [--layers 30] [--json FILE]

Three ways of the same step take turns, rank 16 on all linear layers, optimizer included: rmfast; rmfast with its
adapters computed by PEFT's layers, everything else alike; PEFT over transformers in a padded batch. Their losses must
agree. Lengths are HH-RLHF's, and `even`: 128 tokens each and no common prefix, so that nothing is saved by packing.
The bytes are those of the tensors that full training and adapters hold after a backward pass, always of all layers.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from benchmarks.lengths import draw_lengths
from benchmarks.origin import origin, write_json
from benchmarks.runs import MeasuredRun, open_run
from benchmarks.steps.inputs import prepare_model, write_rows
from rmfast.config import load_config
from rmfast.data.table import GroupTable
from rmfast.models.layers import Linear
from rmfast.models.lora import ADAPTER, to_peft
from rmfast.models.low_rank import TARGETS, LowRank
from rmfast.parallel.optimizer import Optimizer
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import open_inputs

VOCABULARY = 4096  # of the quickstart tokenizer
RANK, RATE, PAIRS, EVEN = 16, 1e-4, 4, 128
AGREE = 1e-3  # relative; losses of the first rounds agree to 1e-6, and rounding grows from step to step under Adam
Step = Callable[[int], float]
"""Takes a step; gives its loss."""


def lora_config(targets: Sequence[str]) -> peft.LoraConfig:
    """PEFT's settings for what rmfast's defaults say."""
    return peft.LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=2 * RANK, target_modules=list(targets))


def opened(folder: Path, model: Path, lengths: np.ndarray, **keys: object) -> tuple[MeasuredRun, GroupTable]:
    """A run over random pairs of these lengths, at a constant learning rate, and its table."""
    write_rows(folder / "pairs.jsonl", lengths, VOCABULARY, 0)
    common = {"model.path": model, "data.train": folder / "pairs.jsonl", "data.max_length": 2048,
              "data.pairs_per_step": PAIRS, "data.cache": folder / "cache", "data.shuffle": "false",
              "run.dir": folder / "run", "run.threads": 1}  # fmt: skip
    config = load_config([f"--{key}={value}" for key, value in (common | keys).items()])
    world = World(1)
    table = open_inputs(config, world).table
    run = open_run(config, world, table)
    run.pairs.rate = lambda step: RATE
    run.build()
    return run, table


def network_of(run: MeasuredRun) -> Any:
    return run.engine.network  # type: ignore[attr-defined]


def take(run: MeasuredRun) -> Step:
    """Steps of a run of ours."""
    return lambda number: float(run.learner.step(number).device["loss"])


def with_layers_of_peft(run: MeasuredRun) -> MeasuredRun:
    """The same run with PEFT's layers in place of its adapters, one for each of Hugging Face's linear layers."""
    network, engine = network_of(run), run.engine
    for layer in network.modules():
        if isinstance(layer, Linear) and layer.adapters is not None:
            _replace(layer)
    world, options = engine.world, engine.optimizer.options  # type: ignore[attr-defined]
    engine.optimizer = Optimizer(network.named_parameters(), options, world, sharded=False)  # type: ignore[attr-defined]
    return run


def _replace(layer: Linear) -> None:
    assert layer.adapters is not None
    adapter = layer.adapters[ADAPTER]
    assert isinstance(adapter, LowRank)
    parts = nn.ModuleDict()
    for i, (begin, end) in enumerate(adapter.places):
        parts[str(i)] = part = nn.Linear(layer.weight.shape[1], end - begin, bias=False)
        part.weight = nn.Parameter(layer.weight.detach()[begin:end], requires_grad=False)
    theirs = peft.inject_adapter_in_model(lora_config(list(parts)), parts)
    for (name, part), a in zip(theirs.items(), adapter.a.detach().split(RANK), strict=True):
        assert name.isdigit()
        part.lora_A["default"].weight.data.copy_(a)
    layer.parts, layer.adapters, layer.trunk = theirs, None, None
    places = adapter.places

    def product(x: Tensor, weight: Tensor, bias: Tensor | None, start: int = 0) -> Tensor:
        held = [str(i) for i, (begin, _) in enumerate(places) if start <= begin < start + len(weight)]
        return torch.cat([theirs[i](x) for i in held], dim=-1) if len(held) > 1 else theirs[held[0]](x)

    layer._product = product  # type: ignore[method-assign]


def padded(model: Path, run: MeasuredRun, table: GroupTable) -> Step:
    """Steps of PEFT over transformers, each step's sequences in one padded batch."""
    base = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
    theirs = peft.get_peft_model(base, lora_config(TARGETS))
    state = {name: parameter.detach() for name, parameter in network_of(run).named_parameters()}
    peft.set_peft_model_state_dict(theirs, to_peft(network_of(run), state))
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
    pad = base.config.pad_token_id
    batches = []
    for first in range(0, len(table), PAIRS):
        pairs = [table.sequences_of(group) for group in range(first, first + PAIRS)]
        sequences = [torch.tensor(pair[side]) for side in (0, 1) for pair in pairs]
        ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)
        batches.append((ids, (ids != pad).long()))

    def step(number: int) -> float:
        ids, mask = batches[number]
        better, worse = theirs(input_ids=ids, attention_mask=mask).logits[:, 0].chunk(2)
        loss = -F.logsigmoid(better - worse).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    theirs.train()
    return step


def measure(folder: Path, lengths: np.ndarray, shape: str, layers: int) -> dict[str, Any]:
    """CPU seconds and losses of each way, round by round; the first round warms up."""
    folder.mkdir()
    model = folder / "model"
    prepare_model(shape, model, 0, num_hidden_layers=layers)
    lora = {"model.adapter": "lora"}
    ours, table = opened(folder, model, lengths, **lora)
    ways = {
        "rmfast": take(ours),
        "PEFT's layers in rmfast": take(with_layers_of_peft(opened(folder, model, lengths, **lora)[0])),
        "PEFT over transformers": padded(model, ours, table),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(len(table) // PAIRS):
        for way, step in ways.items():
            begin = time.process_time()
            losses[way].append(step(number))
            seconds[way].append(time.process_time() - begin)
    difference = max(abs(a / b - 1) for each in losses.values() for a, b in zip(each, losses["rmfast"], strict=True))
    if difference > AGREE:
        raise RuntimeError(f"the ways do not take the same steps: losses differ by {difference:.1e}: {losses}")
    seconds = {way: each[1:] for way, each in seconds.items()}
    shares = {way: [a / b for a, b in zip(seconds["rmfast"], each, strict=True)] for way, each in seconds.items()}
    return {
        "cpu_seconds": {way: median(each) for way, each in seconds.items()},
        "rmfast_share": {way: median(each) for way, each in shares.items() if way != "rmfast"},
        "largest_loss_difference": difference,
        "sequence_tokens": int(sum(len(s) for g in range(PAIRS, len(table)) for s in table.sequences_of(g))),
        "seconds": seconds,
    }


def memory(folder: Path, shape: str) -> dict[str, dict[str, int]]:
    """Bytes of the tensors that training of the whole shape holds after a backward pass, by what they are."""
    folder.mkdir()
    model = folder / "model"
    prepare_model(shape, model, 0)
    ways: dict[str, dict[str, object]] = {
        f"{name}, `{dtype}`": {"model.adapter": adapter, "model.dtype": dtype}
        for name, adapter in (("full training", "none"), ("LoRA", "lora"))
        for dtype in ("float32", "bfloat16")
    }
    found = {}
    for way, keys in ways.items():
        run, _ = opened(folder, model, np.full((PAIRS, 3), 2), **keys)
        engine: Any = run.engine
        run.pairs.gradients(0)
        parameters, moments = list(engine.network.parameters()), engine.optimizer.state().values()
        found[way] = {
            "weights": size(parameters),
            "copies": size(engine.copies.copies),
            "gradients": size(p.grad for p in parameters if p.grad is not None),
            "optimizer": sum(size(each.values()) for each in moments),
        }
        del run, engine, parameters, moments
    return found


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory under some tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30, help="of the steps that are timed (default: %(default)s)")
    parser.add_argument("--model", default="smollm2-135m", help="a shape (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    about = origin()
    pairs = (args.rounds + 1) * PAIRS  # the first round warms up
    workloads = {"hh": draw_lengths("hh", pairs, 0), "even": np.tile([0, EVEN, EVEN], (pairs, 1))}
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            name: measure(Path(folder, name), lengths, args.model, args.layers) for name, lengths in workloads.items()
        }
        held = memory(Path(folder, "memory"), args.model)
    result = {"steps": steps, "bytes": held} | about
    result["settings"] = vars(args) | {"json": None, "rank": RANK, "pairs_per_step": PAIRS}
    if args.json:
        write_json(args.json, result)
    for name, step in steps.items():
        for way, share in step["rmfast_share"].items():
            print(f"{name}: rmfast takes {share:.2f} of the CPU time of {way}")
    for way, sizes in held.items():
        print(
            f"{way}: {sum(sizes.values()) / 1e6:,.0f} MB; " + ", ".join(f"{n} {b / 1e6:,.1f}" for n, b in sizes.items())
        )


if __name__ == "__main__":
    main()
