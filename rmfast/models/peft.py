"""PEFT's LoRA folders: what they hold, the model that they need beside them, and weights with an adapter merged in.

A folder has adapter_config.json and adapter_model.safetensors (or .bin): A and B of each adapted layer, and whole
weights of other modules (`modules_to_save`), such as the reward head. Its base is a folder or file that
`base_model_name_or_path` names; that may be another adapter's folder.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rmfast.errors import UserError
from rmfast.models.folder import FORMATS, Reader, read_json
from rmfast.models.lora import HEAD_WEIGHT, PREFIX
from rmfast.models.low_rank import LoraOptions
from rmfast.models.weights import LM_HEAD, StoredWeight

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHT_FILES = (ADAPTER_WEIGHTS, "adapter_model.bin")
HARMLESS = frozenset(
    (
        *("peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping"),
        *("inference_mode", "r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "lora_dropout", "bias"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
        *("init_lora_weights", "eva_config", "megatron_core", "qalora_group_size"),
    )
)
"""Settings that are computed here, or change nothing of a trained adapter; others are refused where they are set."""
EMBED_TOKENS = "model.embed_tokens.weight"
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base's weights as they are."""


@dataclass(frozen=True)
class PeftFolder:
    """An adapter's folder, its settings, and where its base is."""

    path: Path
    settings: Mapping[str, Any]
    base: Path

    @property
    def weights(self) -> Path:
        """The file of its weights.

        Raises:
            UserError: there is none.
        """
        for name in WEIGHT_FILES:
            if (self.path / name).is_file():
                return self.path / name
        raise UserError(
            f"{self.path}: a PEFT adapter without weights: no {' or '.join(WEIGHT_FILES)} beside its config"
        )

    def scale(self, layer: str, rank: int) -> float:
        """What a layer's B A is multiplied by."""
        default, patterns = _alphas(self.settings)
        alpha = next((alpha for pattern, alpha in patterns if pattern.match(layer)), default)
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def applied(self, stored: Reader, base: Reader, *, tied: bool) -> Reader:
        """The base's weights by the architecture's names with the adapter's merged into them or in their place.

        Args:
            stored: of the adapter's file.
            tied: whether the base's language-model head is its embedding; an adapter with another embedding leaves the
                head what it was.

        Raises:
            UserError: the adapter is of another base.
        """
        if tied and (table := _known(EMBED_TOKENS, base)) in base:
            base = {LM_HEAD: base[table]} | base
        out, names = dict(base), {name: _plain(name) for name in stored}
        for name, plain in names.items():
            if not name.startswith(PREFIX):
                raise UserError(
                    f"{self.path}: {name} has not PEFT's prefix {PREFIX}: save the adapter by save_pretrained"
                )
            layer, mark, kind = plain.partition(".lora_")
            if not mark:
                out[_known(plain, base)] = stored[name]
            elif kind == "B.weight" and (other := f"{layer}.lora_A.weight") not in names.values():
                raise UserError(f"{self.path}: {name} has no {other} beside it: the adapter's file is not whole")
            elif kind == "A.weight":
                target = _known(f"{layer}.weight", base)
                out[target] = self._merged(base, target, stored, name, layer)
            elif kind != "B.weight":
                raise UserError(f"{self.path}: {name} is no part of LoRA on linear layers, which rmfast reads alone")
        return out

    def _merged(self, base: Reader, target: str, stored: Reader, low: str, layer: str) -> StoredWeight:
        up = low.replace(".lora_A.", ".lora_B.")
        if target not in base:
            raise UserError(
                f"{self.path}: adapts {target}, which its base {self.base} does not hold: it is of another model"
            )
        if up not in stored:
            raise UserError(f"{self.path}: {low} has no {up} beside it: the adapter's file is not whole")
        if len(stored[low].shape) != 2 or len(stored[up].shape) != 2:
            raise UserError(f"{self.path}: {low} is no part of LoRA on linear layers, which rmfast reads alone")
        (rank, inputs), (outputs, same) = stored[low].shape, stored[up].shape
        if base[target].shape != (outputs, inputs) or same != rank:
            raise UserError(
                f"{self.path}: adapts {target} as ({outputs}, {inputs}) by ranks {rank} and {same}, and in its base "
                f"{self.base} it is {base[target].shape}: it is of another model"
            )
        part = MergedPart(base[target], stored[low], stored[up], self.scale(layer, rank))
        return StoredWeight(lambda: part[:], lambda: part)


@dataclass(frozen=True)
class MergedPart:
    """W + scale B A in fp32, read where it is indexed."""

    weight: StoredWeight
    low: StoredWeight
    up: StoredWeight
    scale: float

    def get_shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def get_dtype(self) -> str:
        return self.weight.kind

    def __getitem__(self, place: slice | tuple[slice, slice]) -> Tensor:
        rows, columns = place if isinstance(place, tuple) else (place, slice(None))
        change = self.up()[rows].float() @ self.low()[:, columns].float()
        weight: Tensor = self.weight.view()[rows, columns]
        return weight.float() + change * self.scale


def _plain(name: str) -> str:
    """A weight's name without what PEFT put around it."""
    return name.removeprefix(PREFIX).replace(".modules_to_save.", ".").replace(".base_layer.", ".")


def _known(name: str, base: Reader) -> str:
    """What the base calls a weight: a bare trunk has no "model." before its names."""
    for other in (name, name.removeprefix("model."), f"model.{name}"):
        if other in base:
            return other
    return name


def adapter_folder(path: Path) -> PeftFolder | None:
    """The adapter in a folder; None of a folder or file without an adapter's files.

    Raises:
        UserError: one that cannot be read, or not without its base, which is named; one beside full weights, as PEFT
            would then load the base and the adapter, and transformers without PEFT the full weights.
    """
    if not (found := [name for name in (ADAPTER_CONFIG, *WEIGHT_FILES) if (path / name).is_file()]):
        return None
    settings = read_json(path / ADAPTER_CONFIG)
    named, kind = settings.get("base_model_name_or_path"), settings.get("peft_type") or "PEFT"
    name = named if isinstance(named, str) else None
    what = f"a PEFT adapter ({found[0]}, {kind} of {name or 'its base'})"
    if any((path / f"{stem}.{ending}{index}").is_file() for stem, ending in FORMATS for index in ("", ".index.json")):
        raise UserError(
            f"{path}: {what} beside full weights, and does not say which is the model: move the adapter's files away "
            "if it is merged into them, or else the full weights"
        )
    _check(path, what, settings)
    if not name:
        raise UserError(f"{path}: {what} that does not name its base: set base_model_name_or_path in {ADAPTER_CONFIG}")
    places = [path / name, Path(name).expanduser()]
    base = next((place for place in places if place.exists()), None)
    if base is None:
        raise UserError(
            f"{path}: {what}, and that base is not here: it is looked for from the adapter's folder and from the "
            f"working directory; put it there, or name its folder as base_model_name_or_path in {ADAPTER_CONFIG}"
        )
    return PeftFolder(path, settings, base)


def _check(path: Path, what: str, settings: Mapping[str, Any]) -> None:
    """Refuse, by name, what an adapter has beside LoRA on linear layers."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path}: {what}: rmfast reads those of peft_type LORA; merge it into its base with PEFT")
    others = [key for key, value in settings.items() if value and key not in HARMLESS]
    if settings.get("bias") not in (None, "none"):
        others.append("bias")
    if (start := settings.get("init_lora_weights")) not in PLAIN_STARTS:
        others.append(f"init_lora_weights ({start})")
    if others:
        raise UserError(
            f"{path}: {what} with {min(others)}, which rmfast does not compute: merge it into its base with PEFT "
            "(merge_and_unload) and give that folder"
        )
    try:
        _alphas(settings)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise UserError(f"{path / ADAPTER_CONFIG}: lora_alpha or alpha_pattern cannot be read: {error}") from None


def _alphas(settings: Mapping[str, Any]) -> tuple[float, list[tuple[re.Pattern[str], float]]]:
    """Alpha, and that of layers that match patterns, in PEFT's order.

    Raises:
        TypeError, ValueError, AttributeError, re.error: they are no such values.
    """
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    found = [(re.compile(rf"(.*\.)?({key})$"), float(alpha)) for key, alpha in patterns.items()]
    return float(settings.get("lora_alpha", 8)), found


def chain(path: Path) -> tuple[list[PeftFolder], Path]:
    """The adapters that a model is made of, the last one first, and the whole model that they are on.

    Raises:
        UserError: see `adapter_folder`; adapters that name each other.
    """
    found: list[PeftFolder] = []
    while (adapter := adapter_folder(path)) is not None:
        found.append(adapter)
        path = adapter.base
        if any(path.samefile(one.path) for one in found):
            raise UserError(f"{adapter.path}: an adapter whose base, {path}, is an adapter of it")
    return found, path


def tokenizer_folder(path: Path) -> Path:
    """Where a model's tokenizer is: in an adapter's folder, or else in its base."""
    adapters, base = chain(path)
    return next((one.path for one in adapters if (one.path / "tokenizer_config.json").is_file()), base)


def peft_settings(options: LoraOptions, base: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What adapter_config.json says of an adapter of ours; what it leaves out is PEFT's default.

    Args:
        state: by PEFT's names.
    """
    head = HEAD_WEIGHT in state
    kinds = {name.split(".")[-3] for name in state if name.endswith(".lora_A.weight")}
    targets = [target for target in options.targets if target in kinds]
    alpha = int(options.alpha) if options.alpha == int(options.alpha) else options.alpha
    return {
        "base_model_name_or_path": str(base.absolute()),
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": options.dropout,
        "modules_to_save": ["score"] if head else None,
        "peft_type": "LORA",
        "r": options.rank,
        "target_modules": targets + sorted(kinds - {*targets}),
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "use_rslora": options.rslora,
    }
