"""Weights by the names that their architecture has for them, whatever they were saved from or under.

A state dict of a wrapped model has the wrapper's prefix before every name. A reward head may have another name than
transformers' `score`, or a file beside the weights. What is one row without bias over the last hidden state, or
several, is `score.weight` here; anything else is refused by name, as scores would change without a word.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from rmfast.errors import UserError
from rmfast.models.folder import Reader

log = logging.getLogger(__name__)
SCORE = "score.weight"
VALUES = "rmfast_values"
"""Key of a critic's config.json, with `shift` and `scale`: a value is (score - shift) / scale."""
ENSEMBLE = "ensemble"
HEADS = (  # of transformers, OpenRLHF, TRL and LLaMA-Factory, MOSS-RLHF, UltraRM, safe-rlhf; then what others use
    "score", "value_head", "v_head.summary", "v_head", "reward_head", "regression_head", "score_head", "rm_head",
    "value_head.summary", "classifier",
)  # fmt: skip
BESIDE = ("value_head", "v_head", "reward_head", "regression_head", "score_head", "rm_head", "score", "classifier")
"""Names of files that hold a head alone, as LLaMA-Factory's value_head.safetensors."""
_ENDINGS = ("safetensors", "bin", "pt", "pth")
_HEAD_LIKE = re.compile(r"(?<!lm_)head|score|value|reward|classif|regress", re.IGNORECASE)
_IN_TRUNK = re.compile(r"\.\d+\.|embed")
WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Wrappers of single modules: torch.compile, FSDP and activation checkpointing."""
EACH_TOKEN = ("ForTokenClassification", "ForProcessRewardModel")
"""Ends of the names of classes whose head gives no score of a whole response."""
UNMERGED = (".lora_", ".base_layer.", ".modules_to_save.")


def _root(name: str) -> str:
    return name.split(".")[0]


ROOTS = frozenset(map(_root, HEADS))


def unwrapped(stored: Reader, expected: Collection[str], path: Path) -> Reader:
    """The weights without the prefix of a wrapper (`module.` and the like) that their names begin with.

    A head may be without it: some wrappers are a trunk and a head.

    Args:
        expected: the architecture's names.

    Raises:
        UserError: most names have such a prefix and some do not; LoRA matrices that were never merged.
    """
    if unmerged := [name for name in stored if any(mark in name for mark in UNMERGED)]:
        raise UserError(
            f"{path}: {unmerged[0]} is of a PEFT model that was not merged: merge_and_unload() it and save it again"
        )
    names = {name: _without(name, WITHIN) for name in stored}
    # A bare trunk (LlamaModel) has no "model." before its names.
    known = set(expected) | {name.removeprefix("model.") for name in expected}
    found = Counter(prefix for name in names.values() if (prefix := _prefix(name, known)) is not None)
    prefix, count = found.most_common(1)[0] if found else ("", 0)
    prefix = prefix if count > len(names) / 2 else ""
    if other := [name for name, plain in names.items() if not plain.startswith(prefix) and _root(plain) not in ROOTS]:
        raise UserError(
            f"{path}: weights have the prefix {prefix!r} of a wrapper before their names, but {other[0]} has not: save "
            "the state dict of the model within the wrapper"
        )
    plain = {name.removeprefix(prefix): stored[key] for key, name in names.items()}
    if len(plain) < len(stored):
        raise UserError(f"{path}: holds weights twice, with and without {' or '.join(WITHIN)} in their names")
    return plain


def _without(name: str, marks: Iterable[str]) -> str:
    for mark in marks:
        name = name.replace(mark, "")
    return name


def _prefix(name: str, known: Collection[str]) -> str | None:
    """What is before a known name, the longest that fits; None where none does."""
    if name in known:
        return ""
    parts = name.split(".")
    for begin in range(1, len(parts)):
        if (rest := ".".join(parts[begin:])) in known:
            return name.removesuffix(rest)
    return None


def joined(stored: Reader, beside: Reader, path: Path) -> Reader:
    """The weights and those of the files beside them (see `head_files`).

    Raises:
        UserError: both hold one of a name.
    """
    if twice := sorted(stored.keys() & beside.keys()):
        raise UserError(f"{path}: {twice[0]} is in the weights and in a file beside them; delete the one that is wrong")
    return stored | beside


def with_head(both: Reader, path: Path, configured: str | None = None, shown: Callable[[str], str] = str) -> Reader:
    """The weights with the reward head, if there is one, as `score.weight`.

    Args:
        both: of `joined`, by the architecture's names.
        configured: the head's name in config.json (OpenRLHF's `value_head_prefix`).
        shown: the name in the file, for errors.

    Raises:
        UserError: two heads, one of several layers, or one with a bias that is not 0.
    """
    names = (*HEADS, *([configured] if configured and configured not in HEADS else ()))
    heads = [name for name in names if f"{name}.weight" in both]
    roots = {*map(_root, names)}
    parts = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    if layers := [name for name in both if _root(name) in roots and name not in parts]:
        raise UserError(
            f"{path}: {layers[0]} is part of a reward head of more than one layer; rmfast reads heads of one matrix "
            "without bias (score.weight)"
        )
    if len(heads) > 1:
        raise UserError(f"{path}: two reward heads, {heads[0]}.weight and {heads[1]}.weight: delete the one not meant")
    if not heads:
        return both
    weight, bias = f"{heads[0]}.weight", f"{heads[0]}.bias"
    if len(both[weight].shape) != 2:
        raise UserError(f"{path}: {shown(weight)} has shape {both[weight].shape}, and a reward head has rows: (1, d)")
    if bias in both and (values := both[bias]()).count_nonzero():
        value = ", ".join(f"{v:.4g}" for v in values.flatten()[:3].tolist())
        raise UserError(
            f"{path}: {shown(bias)} adds {value} to every score, and a *ForSequenceClassification head (score.weight) "
            f"has no bias; differences of rewards, all that preferences tell, are the same without it: set "
            f"{shown(bias)} to 0 and save the weights again"
        )
    rest = {name: value for name, value in both.items() if name not in (weight, bias)}
    return rest | {SCORE: both[weight]}


def refuse_other_scores(hf: PreTrainedConfig, path: Path) -> None:
    """Nothing, of a folder whose head scores a response by its last token's hidden state, as far as its config tells.

    A config that names code in the folder is warned of: it is never run.

    Raises:
        UserError: a model that scores each token, or each step.
    """
    architecture = str((getattr(hf, "architectures", None) or [""])[0])
    if architecture.endswith(EACH_TOKEN):
        raise UserError(
            f"{path}: {architecture} scores each token or step (a process reward model), and rmfast reads one score of "
            "a response, at its last token"
        )
    code: dict[str, Any] = getattr(hf, "auto_map", None) or {}
    if code and not architecture.endswith(("ForSequenceClassification", "ForCausalLM")):
        log.warning(
            "%s: config.json names code of its folder (%s, auto_map), which is never run: scores are those of a plain "
            "head on the last token; compare some with those that its page gives",
            path,
            architecture,
        )


def head_files(path: Path) -> list[Path]:
    """Files beside a folder's weights that hold a reward head.

    Raises:
        UserError: one whose name is of a head and not known, or a Dense layer of sentence-transformers.
    """
    refuse_dense(path)
    files = sorted(file for ending in _ENDINGS for file in path.glob(f"*.{ending}"))
    for file in files:
        if file.stem not in BESIDE and _HEAD_LIKE.search(file.stem):
            raise UserError(
                f"{path}: {file.name} may be its reward head, and rmfast does not know that name: call it "
                f"value_head.{file.suffix[1:]} if it is, or move it out of the folder"
            )
    return [file for file in files if file.stem in BESIDE]


def refuse_dense(path: Path) -> None:
    """Nothing, of a folder without a Dense layer of sentence-transformers, which scores its trunk's states there.

    Raises:
        UserError: there is one: scores without it would be others.
    """
    dense = {file.parent.name for file in path.glob("*_Dense*/config.json")}
    try:
        modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
        dense |= {str(one["path"]) for one in modules if str(one["type"]).endswith(".Dense")}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no such file, or none of sentence-transformers
    if dense:
        raise UserError(
            f"{path}: {min(dense)} is a Dense layer of sentence-transformers behind the model, which rmfast does not "
            "read: save one row without bias as score.weight in value_head.safetensors and move the layer's folder and "
            "modules.json away; without the layer, the trunk can be given a new head by training"
        )


def likely_heads(stored: Reader) -> list[str]:
    """Weights outside the trunk that have a few rows, as a head has, with their shapes."""
    shapes = {name: weight.shape for name, weight in stored.items() if not _IN_TRUNK.search(name)}
    return [f"{name} {shape}" for name, shape in shapes.items() if len(shape) == 2 and shape[0] < shape[1]]


def head_names(stored: Reader, file: Path) -> Reader:
    """A head file's weights by their whole names, as a saved `nn.Linear` has only "weight" and "bias"."""
    return {name if _root(name) in ROOTS else f"{file.stem}.{name}": value for name, value in stored.items()}


def choose_row(label: str | int | None, rows: int, hf: PreTrainedConfig, path: Path) -> int | None:
    """The row of a head that a label means; None: all of them, as members of an ensemble, or the only one.

    Args:
        label: a name of config.json's labels, a number from 0 on, "ensemble", or None for what the folder says.
        rows: of the head.

    Raises:
        UserError: several labels that rmfast did not write as an ensemble, and none is chosen; no such label.
    """
    labels: dict[Any, Any] = hf.id2label or {}
    names = [str(labels[i]) for i in sorted(labels)] if len(labels) == rows else []
    if label is None:
        written = getattr(hf, "rmfast", None)
        if rows == 1 or (isinstance(written, dict) and written.get("heads") == ENSEMBLE):
            return None
        listed = f" ({', '.join(names[:20])})" if names else f", where config.json says {len(labels)}"
        raise UserError(
            f"{path}: a classifier of {rows} labels{listed}; a reward model has one: choose it by name or number "
            f'(--label, rmfast.load(label=...)), or "{ENSEMBLE}" if they are heads that rmfast trained (model.heads: '
            f"{rows} in training)"
        )
    if label in names:
        return names.index(str(label))
    if label == ENSEMBLE:
        return None
    if str(label).isdecimal() and int(label) < rows:
        return int(label)
    raise UserError(
        f"{path}: no label {label!r}; there {'is' if rows == 1 else 'are'} {', '.join(names[:20]) or 'no names'}, or "
        f"{'the number 0' if rows == 1 else f'the numbers 0 to {rows - 1}'}"
    )
