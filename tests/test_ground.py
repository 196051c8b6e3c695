"""The ground: the shipped sample and its decoder, licences, the bounds of the package, commands named in the docs."""

import ast
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs" / "quickstart"
DECODER = QUICKSTART / "decoder"


def read_rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(QUICKSTART / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def first_turn(row: dict[str, Any]) -> str:
    return "".join(c for c in row["prompt"][0]["content"].lower() if c.isalnum())


@pytest.fixture(scope="module")
def train() -> list[dict[str, Any]]:
    return read_rows("train.jsonl.gz")


@pytest.fixture(scope="module")
def test() -> list[dict[str, Any]]:
    return read_rows("test.jsonl.gz")


def test_sample_is_small_and_large_enough(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
    assert sum((QUICKSTART / name).stat().st_size for name in ("train.jsonl.gz", "test.jsonl.gz")) <= 450_000
    pairs, rankings = ([row for row in train if key in row] for key in ("chosen", "responses"))
    assert len(test) >= 450 and len(pairs) >= 1_000 and len(rankings) >= 50
    readme = (QUICKSTART / "README.md").read_text(encoding="utf-8")
    for rows in (pairs, rankings, test):
        assert f"| {len(rows):,} |" in readme


@pytest.mark.parametrize("name", ["train.jsonl.gz", "test.jsonl.gz"])
def test_rows_hold_what_the_readme_says(name: str) -> None:
    for row in read_rows(name):
        if row["source"] == "oasst1":
            assert row.keys() == {"prompt", "responses", "source"} and name != "test.jsonl.gz"
            responses = row["responses"]
        else:
            assert row.keys() == {"prompt", "chosen", "rejected", "source"}
            assert row["source"] == "hh-rlhf/harmless-base"
            responses = [row["chosen"], row["rejected"]]
        assert len(responses) >= 2 and len(set(responses)) == len(responses) and all(map(str.strip, responses))
        roles = [message["role"] for message in row["prompt"]]
        assert roles == [("user", "assistant")[i % 2] for i in range(len(roles))] and roles[-1] == "user"
        text = "\n".join([message["content"] for message in row["prompt"]] + responses)
        assert not re.search(r"[\w.]+@[\w.]+\.\w+|\d{3}[ -.]\d{3}[ -.]\d{4}(?!\d)", text), "contact details"


def test_no_first_turn_in_both_halves(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
    assert not {first_turn(row) for row in train} & {first_turn(row) for row in test}


def test_no_row_twice(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
    rows = [json.dumps(row, sort_keys=True) for row in train + test]
    assert len(set(rows)) == len(rows)


def test_licences() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in licence and licence.rstrip().endswith("limitations under the License.")
    readme = (QUICKSTART / "README.md").read_text(encoding="utf-8")
    for words in (
        "Copyright (c) 2022 Anthropic",
        'THE SOFTWARE IS PROVIDED "AS IS"',
        "OASST1",
        "Apache License 2.0",
        "offensive",
    ):
        assert words in readme


def test_decoder_loads_and_its_ids_agree() -> None:
    config, tokenizer = AutoConfig.from_pretrained(DECODER), AutoTokenizer.from_pretrained(DECODER)
    assert sum(file.stat().st_size for file in DECODER.iterdir()) < 250_000
    assert config.vocab_size == len(tokenizer) == 4096
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (2, 0, None)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 0, None)
    model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == config.architectures[0]
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(2.4e6, rel=0.01)


def test_chat_template_round_trip() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    prompt = [{"role": "user", "content": "Grüß dich, 世界!\n\n  def f(x):"}]
    answer = {"role": "assistant", "content": "नमस्ते 🙂"}
    opened = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*prompt, answer], tokenize=False)
    assert whole == f"{opened}{answer['content']}<|im_end|>" and "system" not in whole
    ids = tokenizer(whole, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == whole
    assert ids[0] == 1 and ids[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in ids


def test_make_sample_makes_the_shipped_bytes(
    train: list[dict[str, Any]], test: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The script, fed with the sample in its inputs' form, gives the sample and the tokenizer again."""

    def dump(name: str, rows: list[dict[str, Any]]) -> str:
        path = tmp_path / name
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return str(path)

    hh = [{**row, "meta": {"split": "train"}} for row in train if "chosen" in row]
    hh += [{**row, "meta": {"split": "test"}} for row in test]
    leak = {**hh[0], "prompt": [{"role": "user", "content": test[0]["prompt"][0]["content"].upper() + " ?!"}]}
    contact = {**hh[0], "chosen": "Write to someone@example.com"}
    oasst = []
    for parent, row in enumerate(row for row in train if "responses" in row):
        ranked = list(enumerate(row["responses"]))
        # Worst pairs first: the script must go by rank, not by order of appearance.
        for best, chosen in reversed(ranked):
            for worse, rejected in ranked[best + 1 :]:
                meta = {"parent": str(parent), "rank_chosen": best, "rank_rejected": worse}
                oasst.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "meta": meta})
    inputs = ["--hh", dump("hh.jsonl.gz", [leak, contact, *hh]), "--oasst", dump("oasst.jsonl.gz", oasst)]
    script = [sys.executable, str(QUICKSTART / "make_sample.py"), *inputs, "--out", str(tmp_path)]
    subprocess.run(script, check=True, capture_output=True)
    for name in ("train.jsonl.gz", "test.jsonl.gz"):
        with gzip.open(tmp_path / name) as made, gzip.open(QUICKSTART / name) as shipped:
            assert made.read() == shipped.read(), name
    made_tokenizer, shipped_tokenizer = (
        json.loads((d / "tokenizer.json").read_bytes()) for d in (tmp_path / "decoder", DECODER)
    )
    assert made_tokenizer == shipped_tokenizer


def setup_arguments() -> dict[str, Any]:
    """The literal keyword arguments of setup() in setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup")
    names = ("python_requires", "install_requires", "extras_require")
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in names}


def test_constraints_pin_every_requirement_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    arguments = setup_arguments()
    extras = [r for name, rs in arguments["extras_require"].items() if name != "megatron" for r in rs]
    for requirement in map(Requirement, arguments["install_requires"] + extras):
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"{name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is outside {requirement.specifier}"


def commands_of_make(*words: str) -> list[str]:
    """What `make` would run for a target in a fresh clone, a command each."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "CONSTRAINTS", "TORCH", "VENV")}
    made = subprocess.run(
        ["make", "--dry-run", "--always-make", *words], cwd=ROOT, env=kept, capture_output=True, text=True, check=True
    )
    return made.stdout.replace("\\\n", " ").splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["train", "test", "check", "smollm2", "test-gpu", "bench", "test-versions"])
def test_whatever_make_installs_holds_to_the_constraints(target: str, tmp_path: Path) -> None:
    """torch too, and by both variables that the isolated builds of one pip or another read."""

    def installs(*words: str) -> list[str]:
        commands = commands_of_make(target, f"VENV={tmp_path}", *words)
        found = [command for command in commands if re.search(r"\bpip\d*\b", command)]
        assert len(found) >= 2 and re.search(r"-m pip .* torch\b", found[0])
        return found

    def holds_to(command: str) -> list[str]:
        return re.findall(r"(\w+)=(\S+) (?=.* -m pip )", command)

    for words, file in (((), "constraints.txt"), (("CONSTRAINTS=other.txt",), "other.txt")):
        for command in installs(*words):
            assert holds_to(command) == [("PIP_CONSTRAINT", file), ("PIP_BUILD_CONSTRAINT", file)], command
    for command in installs("CONSTRAINTS="):
        assert holds_to(command) == [] and "constraints.txt" not in command
    cpu = installs("TORCH=torch --only-binary torch")[0]
    assert cpu.endswith(" torch --only-binary torch")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_other_constraints_install_again(tmp_path: Path) -> None:
    """With the same constraints nothing is installed, with others, none or a newer file everything."""
    pins, venv = tmp_path / "pins.txt", tmp_path / "venv"
    pins.touch()
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"  # in place of pip, so that nothing is installed
    python.write_text(f'#!/bin/sh\necho "$PIP_CONSTRAINT $*" >> {tmp_path}/called\necho torch==1.0\n')
    python.chmod(0o755)
    stub = tmp_path / "python3"  # checks of the interpreter pass, and `-m venv` makes nothing
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)

    def called(constraints: object, target: str = ".dev") -> list[str]:
        (tmp_path / "called").write_text("")
        words = ["make", f"VENV={venv}", f"PYTHON={stub}", f"CONSTRAINTS={constraints}", f"{venv}/{target}"]
        kept = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "PIP_CONSTRAINT")}
        subprocess.run(words, cwd=ROOT, env=kept, capture_output=True, check=True)
        lines = (tmp_path / "called").read_text().splitlines()
        return [line for line in lines if "-m pip" in line]

    first = called(pins)
    assert len(first) == 3 and all(line.startswith(f"{pins} -m pip") for line in first)
    assert f"--constraint {venv}/.torch" in first[1] and (venv / ".torch").read_text() == "torch==1.0\n"
    assert called(pins) == []
    assert [line[0] for line in called("")] == [" "] * 3 and called("") == []
    assert called(pins) == first and called(pins) == []
    later = time.time() + 10
    os.utime(pins, (later, later))
    assert called(pins, ".package") == first[:2]


def test_ci_leaves_all_installing_of_packages_to_the_makefile() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    code = "\n".join(line for line in script.splitlines() if not line.lstrip().startswith("#"))
    assert not re.search(r"\bpip\d*\b|\bPIP_|\buv\b|-m venv|CONSTRAINTS|TORCH|VENV\b", code)
    calls = re.findall(r"^make (.*)$", code, re.M)
    assert [call.split()[0] for call in calls] == ["check", "test", "train"]
    assert all(not set(re.findall(r"(\w+)=", call)) - {"ARGS"} for call in calls)


def test_makefile_and_setup_agree_on_python() -> None:
    assert setup_arguments()["python_requires"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for name in ("README.md", "CONTRIBUTING.md", "docs/versions.md", ".ci/run"):
        text = (ROOT / name).read_text(encoding="utf-8")
        named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.M))
        assert named <= targets, f"{name} names make targets that do not exist: {named - targets}"
    assert {"help", "train", "test", "check", "smollm2"} <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def project_files() -> list[str]:
    """What git counts as the project's; in a tree without git, the folders that hold it."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
        return list(filter(None, listing.split("\0")))
    folders = ("kernels", "rmfast", "configs", "benchmarks", "docs", "tests")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return [str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.*"), *inside)]


def test_no_path_of_one_machine() -> None:
    # Written with classes of one letter, so that this file does not match itself.
    pattern = re.compile(rb"(?<![\w.])/(wor[k]|roo[t]|hom[e]|op[t])/\w|(?<![\w/.])share[d]/(data|reference|design)")
    found = []
    names = project_files()
    assert "setup.py" in names and "tests/test_ground.py" in names
    for name in names:
        path = ROOT / name
        if path.is_file() and (match := pattern.search(path.read_bytes())):
            found.append(f"{name}: {match[0].decode()}")
    assert not found, found
