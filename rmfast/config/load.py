"""A config from YAML files and the command line; what is wrong is one line."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rmfast.config.base import Section
from rmfast.config.config import Config
from rmfast.config.iterate import StageTask
from rmfast.config.sections import DenoiseConfig
from rmfast.config.stages import STAGE_KEY, placeholders, stage_config, stage_tasks
from rmfast.data.denoise import Denoise, resolve
from rmfast.errors import KeyClash, UserError, shown
from rmfast.paths import usable_path, whole_text
from rmfast.yaml_text import NotYAML, parse_word, parse_yaml

MAPPINGS = ("data.columns",)
"""Keys whose value may be a mapping; others that hold one are sections."""


def load_config(arguments: Sequence[str]) -> Config:
    """The config that `CONFIG.yaml [MORE.yaml ...] [--section.key value ...]` means; later wins.

    Raises:
        UserError: names the key and the file (or the command line) that is wrong.
    """
    files, overrides = split_arguments(arguments)
    if not files and not overrides:
        raise UserError("no config given: rmfast/train.py CONFIG.yaml [MORE.yaml ...] [--section.key value ...]")
    given = [(file, key, value) for file in files for key, value in _flatten(_read_yaml(file))]
    given += [("command line", key, value) for key, value in overrides]
    origin = {key: where for where, key, _ in given}
    try:
        config = Config.model_validate(_nest({key: value for _, key, value in given}, origin))
    except ValidationError as error:
        raise UserError(_explain(error, origin)) from None
    for task in stage_tasks(config) if config.task == "iterate" else ():
        _check_stage(config, task, origin)
    return config


def _check_stage(config: Config, task: StageTask, origin: dict[str, str]) -> None:
    """Refuse what a stage of task iterate would refuse once its turn has come."""
    prefix = f"{STAGE_KEY}.{task}."
    of_stage = {key.removeprefix(prefix): where for key, where in origin.items() if key.startswith(prefix)}
    try:
        stage_config(config, task, placeholders(config, task))
    except ValidationError as error:
        of_all = {key: where for key, where in origin.items() if not key.startswith("iterate.")}
        raise UserError(_explain(error, of_all | of_stage, f"stage {task}: ")) from None
    except KeyClash as error:
        raise UserError(f"{(_set_in(error.keys[0], origin) or ['config'])[0]}: {error}") from None


class _DenoiseAlone(Section):
    denoise: DenoiseConfig


def read_denoise(preset: str | None, options: Mapping[str, Sequence[str]]) -> Denoise:
    """A preset and the words that a command line gives for options of the denoise section.

    Raises:
        UserError: names the option that is wrong.
    """
    values = {name: _value(words) for name, words in options.items()}
    try:
        section = _DenoiseAlone.model_validate({"denoise": values}).denoise
        return resolve(preset, section.model_dump())
    except ValidationError as error:
        raise UserError(_explain(error, {f"denoise.{name}": "command line" for name in values})) from None
    except ValueError as error:
        raise UserError(f"command line: {error}") from None


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, Any]]]:
    """YAML files, and (key, value) of each `--key value`, `--key=value` or `--key value value ...`."""
    files: list[str] = []
    overrides: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            if not all(key.split(".")):
                raise UserError(f"command line: {argument} names no key")
            overrides.append((key, [value] if equals else []))
        elif overrides:
            overrides[-1][1].append(argument)
        else:
            files.append(argument)
    if empty := [key for key, words in overrides if not words]:
        raise UserError(f"command line: --{empty[0]} needs a value")
    return files, [(key, _value(words)) for key, words in overrides]


def _value(words: Sequence[str]) -> Any:
    """What the words after a key mean: one value, or a list."""
    values = [parse_word(word) for word in words]
    return values[0] if len(values) == 1 else values


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = parse_yaml(whole_text(usable_path(path)))
    except OSError as error:
        raise UserError(f"{path}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: the config is not UTF-8 text") from None
    except NotYAML as error:
        raise UserError(f"{path}{f':{error.line}' if error.line else ''}: not valid YAML: {error}") from None
    except ValueError as error:
        raise UserError(f"the config's path {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of sections, not {type(values).__name__}")
    return values


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        is_section = isinstance(value, dict) and value and key not in MAPPINGS
        out += _flatten(value, f"{key}.") if is_section else [(key, value)]
    return out


def _nest(values: dict[str, Any], origin: dict[str, str]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        node = root
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(f"{origin[key]}: {key}: {section} is not a section")
        if isinstance(node.get(last), dict) and not isinstance(value, dict):
            if value is None:  # `optim:` with nothing under it
                continue
            raise UserError(f"{origin[key]}: {key} is a section of keys, not a value")
        node[last] = {} if value is None and last in Config.model_fields and not sections else value
    return root


def _explain(error: ValidationError, origin: dict[str, str], prefix: str = "") -> str:
    """One line for the first thing that is wrong; `prefix` says in what."""
    # A misspelt key comes first: where it was to be a required one, it explains what is missing.
    first, *more = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    kind, raised = first["type"], first.get("ctx", {}).get("error")
    # Where lists are, pydantic adds the position; keys end at the field.
    key = ".".join([part for part in first["loc"] if isinstance(part, str)][:2])
    if kind == "missing" and key in Config.model_fields:  # a section: name what it needs
        key = next(k for k, field in _fields() if k.startswith(f"{key}.") and field.is_required())
    within = ".".join(map(str, first["loc"][:3])) if key == STAGE_KEY else key  # the stage that is wrong
    keys = raised.keys if isinstance(raised, KeyClash) else (within,)
    found = [o for k in keys for o in _set_in(k, origin)]
    if kind == "extra_forbidden":
        # Of an unknown section the key that was set in it says more.
        key = next((k for k in origin if k.startswith(f"{key}.")), key) if "." not in key else key
        close = get_close_matches(key, known_keys(), n=1, cutoff=0.6)
        text = f"{key}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
    elif kind == "missing" and len(first["loc"]) > 2:
        text = f"{key}: too few values, got {shown(first['input'])}"
    elif kind == "missing":
        text = f"{key}: missing; set it in the file or with --{key}"
    elif kind.startswith("model_"):
        text = f"{key} is a section of keys, not a value"
    elif raised is not None:
        text = str(raised) if isinstance(raised, KeyClash) else f"{key}: {raised}"
    else:
        text = f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, got {shown(first['input'])}"
    rest = f" (and {len(more)} more)" if more else ""
    return f"{found[0] if found else 'config'}: {prefix}{text}{rest}"


def _set_in(key: str, origin: dict[str, str]) -> list[str]:
    """Where a key, or what is under it, was set."""
    return [where for name, where in origin.items() if name == key or name.startswith(f"{key}.")]


def known_keys() -> list[str]:
    """Every key, dotted."""
    return [key for key, _ in _fields()]


def _fields() -> list[tuple[str, FieldInfo]]:
    out: list[tuple[str, FieldInfo]] = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            out += [(f"{name}.{key}", inner) for key, inner in section.model_fields.items()]
        else:
            out.append((name, field))
    return out


def config_help() -> str:
    """All keys with types, defaults and meaning."""
    lines = []
    for key, field in _fields():
        kind = str(field.annotation).replace("typing.", "") if get_args(field.annotation) else field.annotation.__name__  # type: ignore[union-attr]
        kind = kind.replace("Literal", "").replace("NoneType", "null").replace("None", "null").replace("'", "")
        default = "required" if field.is_required() else f"default {json.dumps(field.default)}"
        lines.append(f"  --{key}  {kind}  ({default})\n      {field.description}")
    return "\n".join(lines)
