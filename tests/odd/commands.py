"""Odd commands: every command of `rmfast` and the training, with words replaced, left out, doubled and added."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from rmfast.cli import main
from tests.commands.rows import write_models
from tests.odd.values import SURROGATE

PATHS = (
    "", " ", "\0", "a\0b", SURROGATE, "x" * 5000, "x/" * 3000, ".", "..", "#", ":", "#train", ":a#b",
    "no/such/folder/x", "/dev/null", "/dev/full", "/proc/version", "~nobody/x", "-", "a\nb", "\x1b[31m", "{folder}",
    "{folder}/closed/x", "{folder}/one/config.json", "{folder}/pairs.jsonl/x", "{folder}/empty.jsonl",
    "{folder}/loop", "{folder}/bytes", "{folder}/pairs.jsonl", "{folder}/one", "{folder}/result.json",
    "{folder}/config.yaml", "{folder}/lists.jsonl", "{folder}/scored.jsonl", "https://localhost:1/x", "a/b:c#d",
    "{folder}/pairs.jsonl#x", "{folder}/pairs.jsonl:x",
)  # fmt: skip
NUMBERS = (
    "0", "-1", "1", "3", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 30, "9" * 5000, "-" + "9" * 30, "",
    " ", "\0", "x", "0x10", "1_0", "\u0663", "12:00:00", "1-00:00:00", "9" * 30 + ":00", "2024-01-01", "9999-12-31",
    "10000-01-01", "0001-01-01", "2024-02-30", "4294967296", "9223372036854775808", "1e9", "1e300", SURROGATE,
)  # fmt: skip
COMMANDS = {
    "report": "data report {folder}/pairs.jsonl --model {folder}/one --max-length 64 --samples 2",
    "prompts": "data report {folder}/pairs.jsonl --prompts --template-date 2024-01-01 --columns ignore",
    "denoise": "data denoise {folder}/strengths.jsonl --preset flip --flip 0.2 --drop 0 0.1 --examples 1 "
    "--out {out}.jsonl --plot {out}.png",
    "eval": "eval {folder}/one {folder}/two --suite pairwise --data {folder}/pairs.jsonl --out {out}.json "
    "--combine mean-k-std --k 1 --tokens-per-pack 512",
    "judge": "eval --judge {folder}/base --data {folder}/pairs.jsonl --max-tokens 2 --out {out}.json --seed 1",
    "endpoint": "eval --endpoint http://localhost:9/v1 --judge-model x --data {folder}/pairs.jsonl --out {out}.json "
    "--retries 0 --timeout 1 --concurrency 2 --requests-per-minute 60000",
    "score": "score {folder}/one --data {folder}/pairs.jsonl --out {out}.jsonl --dtype float32 --device cpu",
    "sample": "sample {folder}/base --data {folder}/pairs.jsonl --limit 2 --n 2 --max-new-tokens 2 --temperature 1 "
    "--top-p 0.9 --top-k 5 --min-p 0.01 --repetition-penalty 1.1 --rows 8 --memory 1 --out {out}.jsonl "
    "--reward {folder}/one --keep all",
    "compare": "compare {folder}/result.json {folder}/result.json --out {out}.json --html {out}.html "
    "--candidates {folder}/scored.jsonl {folder}/scored.jsonl --gold {folder}/scored.jsonl",
    "export": "export {folder}/one --out {out} --dtype float32 --template-date 2024-01-01",
    "plan": "plan {folder}/config.yaml --gpus 8 --gpu h100 --tokens-per-group 300 --show 2 --out {out}.json",
    "slurm": "launch slurm {folder}/config.yaml --nodes 1 --gpus-per-node 0 --time 12:00:00 --lead 300 --restarts 3 "
    "--cpus-per-task 2 --mem 4G --job-name x --logs {out} --out {out}.sbatch",
    "train": "train {folder}/config.yaml --run.dir {out} --run.max_steps 1 --optim.warmup 1 "
    "--data.cache {folder}/cache",
}
"""One good command line of each; `{out}` is a name that is free."""


def write_inputs(folder: Path) -> Path:
    """What the commands read: models, rows, a result, a config, and things that only look like them."""
    write_models(folder)
    pairs = str(folder / "pairs.jsonl")
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "bytes").write_bytes(bytes(range(256)))
    (folder / "lists.jsonl").write_text("[1, 2]\n3\nnull\n")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "closed").mkdir()
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c", "strength_mean": n - 5.0} for n in range(10)]
    (folder / "strengths.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run = {"dir": str(folder / "run"), "tensorboard": False}
    data = {"train": pairs, "cache": str(folder / "cache"), "workers": 1}
    config = {"run": run, "model": {"path": str(folder / "base")}, "data": data, "eval": {"at_start": False}}
    (folder / "config.yaml").write_text(json.dumps(config))
    out = {"result.json": "eval", "scored.jsonl": "score"}
    for name, command in out.items():
        assert main([command, str(folder / "one"), "--data", pairs, "--out", str(folder / name)]) == 0
    return folder


def odd_commands(seed: int, count: int, folder: Path) -> Iterator[list[str]]:
    """Words of commands, that of training with `train` in front; every other change is to the words' end."""
    draw, names = random.Random(seed), list(COMMANDS)
    for number in range(count):
        words = COMMANDS[names[number % len(names)]].split()
        for _ in range(draw.choice((1, 1, 1, 2))):
            _change(words, draw)
        out = folder / f"out-{seed}-{number}"
        yield [word.replace("{folder}", str(folder)).replace("{out}", str(out)) for word in words]


def _change(words: list[str], draw: random.Random) -> None:
    values = [place for place in range(1, len(words)) if not words[place].startswith("--")]
    way, place = draw.random(), draw.choice(values)
    if way < 0.75:
        is_path = "{" in words[place] or draw.random() < 0.2
        words[place] = draw.choice(PATHS if is_path else NUMBERS)
    elif way < 0.85:
        del words[place]
    elif way < 0.92:
        words.insert(place, draw.choice((*PATHS, *NUMBERS)))
    else:
        words += [draw.choice([word for word in words if word.startswith("--")] or ["--x"]), draw.choice(NUMBERS)]
