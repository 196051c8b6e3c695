"""What an iteration has done, in RUN/iterate.json: of each stage its settings, what it read, and what it made."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rmfast.config import Config
from rmfast.config.stages import COMPOSED, flat
from rmfast.data.files import write_text
from rmfast.errors import UserError
from rmfast.outputs.checksums import differences, file_checksum, sealed, unsealed
from rmfast.outputs.kinds import json_object
from rmfast.outputs.marks import ITERATE_FILE, MODEL_MARK, exported_files
from rmfast.tasks.iterate.stages import Plan, Stage

STAGES = "stages"
ADVICE = "go back, set run.resume to never (moves the run), or choose another run.dir"
FREE = {
    "run": ("log_every", "tensorboard", "wandb", "threads"),
    "model": ("recompute", "kernels", "attention"),
    "data": ("eval", "tokens_per_pack", "cache", "workers"),
    "optim": ("on_nonfinite", "max_skipped", "backend"),
    "ppo": ("eval_prompts", "gold", "offload", "stop_kl", "stop_entropy", "stop_cut"),
}
"""Keys that may change between two starts, as in a run that is resumed; and all of the sections below."""
FREE_SECTIONS = ("eval", "checkpoint", "parallel", "rollout", "iterate", "ensemble")
OF_ROUNDS = ("sft", "reward", "policy", "reference", "prompts", "temperature")
"""Keys of iterate that finished stages depend on."""


@dataclass
class Record:
    """The stages that are done, on rank 0, which alone reads and writes it.

    Attributes:
        settings: what they all depend on. stages: by name, `settings`, `read` and `made`.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, plan: Plan, folder: Path) -> "Record":
        """What RUN/iterate.json says.

        Raises:
            UserError: it is damaged, or of an iteration with other settings.
        """
        file = folder / ITERATE_FILE
        record, settings = cls(folder, whole_settings(plan.config)), whole_settings(plan.config)
        if not file.is_file():
            if (folder / "checkpoints").is_dir():
                raise UserError(f"run.dir: {folder} holds another run, no iteration; {ADVICE}")
            return record
        try:
            values = unsealed(json_object(file.read_bytes()), STAGES)
            before, record.stages = dict(values["settings"]), dict(values[STAGES])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}: damaged; bring it back, {ADVICE.removeprefix('go back, ')}") from None
        if record.stages:
            _compare(folder, before, settings)
        return record

    def done(self, stage: Stage) -> tuple[bool, str]:
        """Whether a stage is done and what it made is whole; else a line that says what is not, where anything is.

        Raises:
            UserError: it was made with other settings, or from something else than is there now.
        """
        found = self.stages.get(stage.name)
        if found is None:
            return False, ""
        _compare(self.folder / stage.name, found["settings"], stage_settings(stage))
        for place, digest in found["read"].items():
            now, _ = self.digest(place)
            if now != digest:
                raise UserError(
                    f"{self.folder / stage.name}: was made from another {place} than is there now; bring that back, or "
                    f"move {stage.name} and what came after it away"
                )
        for place, digest in found["made"].items():
            now, wrong = self.digest(place)
            if now != digest:
                return False, f"{self.folder / place}: {wrong or 'is not what the stage made'}; the stage goes on"
        return True, ""

    def add(self, stage: Stage) -> None:
        """Note that a stage is done."""
        self.stages[stage.name] = {
            "settings": stage_settings(stage),
            "read": {place: self.digest(place)[0] for place in stage.reads},
            "made": {place: self.digest(place)[0] for place in stage.makes},
        }
        self.write()

    def made(self, place: str) -> str:
        """What tells something that a finished stage made from others."""
        return str(next(made for stage in self.stages.values() if (made := stage["made"].get(place)) is not None))

    def write(self) -> None:
        """Write RUN/iterate.json."""
        values = {"settings": self.settings, STAGES: self.stages}
        write_text(self.folder / ITERATE_FILE, json.dumps(sealed(values), indent=1) + "\n")

    def digest(self, place: str) -> tuple[str, str]:
        """What tells a model, a file or a folder of files from another, and what is wrong with it."""
        path = self.folder / place
        try:
            if path.is_file():
                return _digest({path.name: asdict(file_checksum(path))}), ""
            if (path / MODEL_MARK).is_file():
                sums = exported_files(path)
                wrong = next((f"{name} {what}" for name, what in differences(path, sums).items()), "")
                return "" if wrong else _digest(sums), wrong
            files = sorted(file for file in path.glob("[!.]*.jsonl"))
            return (_digest({f.name: asdict(file_checksum(f)) for f in files}), "") if files else ("", "is not there")
        except (OSError, ValueError) as error:
            return "", f"cannot be read: {error}"


def _digest(sums: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {sums[name]['crc32']}" for name in sorted(sums))


def whole_settings(config: Config) -> dict[str, Any]:
    """What all stages depend on."""
    iterate = config.dump()["iterate"]
    base = {"model.path": config.model.path, "run.seed": config.run.seed}
    return base | {f"iterate.{key}": iterate[key] for key in OF_ROUNDS}


def stage_settings(stage: Stage) -> dict[str, Any]:
    """What a stage's result depends on beside what it reads."""
    values = flat(stage.config.dump())
    if stage.kind in ("samples", "answers"):
        kept = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "samples", "prompts")
        prompts = "eval_prompts" if stage.kind == "answers" else "prompts"
        return {f"ppo.{key}": values[f"ppo.{key}"] for key in (*kept[:-1], prompts)} | {
            key: values[key] for key in ("run.seed", "data.max_length", "data.chat_template", "model.dtype")
        }
    kept_sections = {section: FREE.get(section, ()) for section in _sections(stage) if section not in FREE_SECTIONS}
    return {
        key: value
        for key, value in values.items()
        if (section := key.split(".")[0]) in kept_sections
        and key.partition(".")[2] not in kept_sections[section]
        and key not in COMPOSED
    }


def _sections(stage: Stage) -> tuple[str, ...]:
    """Sections that a stage's task reads."""
    shared = ("run", "model", "data", "denoise", "optim", "objective")
    return (*shared, *{"sft": ("sft",), "meta": ("meta",), "ppo": ("ppo",)}.get(stage.kind, ()))


def _compare(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key, value in json.loads(json.dumps(now)).items():
        if before.get(key, value) != value:
            raise UserError(f"{folder}: this run began with {key} {before[key]}, now it is {value}; {ADVICE}")
