"""rmfast export: a checkpoint as a Hugging Face folder."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rmfast.checkpoint.export import CHECK_TEXTS, ModelParts, publish_model, publish_policy
from rmfast.checkpoint.network import holds_policy
from rmfast.commands.flags import check_writable
from rmfast.console import say
from rmfast.data.probe import taken_for_granted
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.store import store_examples
from rmfast.data.table import GroupTable, build_table
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reward_model import find_folder, load
from rmfast.evaluation.scoring.score import score_table
from rmfast.models.config import DTYPES
from rmfast.outputs.overlap import Input, Output, check_overlap
from rmfast.rollout.log_prob import table_log_probs
from rmfast.rollout.policy import load_policy
from rmfast.tasks.build.model import say_date


def export(options: Namespace) -> None:
    """rmfast export"""
    folder, source = Path(options.out), find_folder(options.model)
    if folder.exists():
        raise UserError(f"--out {folder} exists already; name a folder that does not")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"--out {folder}: there is no folder {folder.absolute().parent}")
    check_overlap([Output("--out", folder, "name another")], [Input("CKPT", source)])
    check_writable("--out", folder)
    template = {"chat_template": options.chat_template, "template_date": options.template_date}
    if holds_policy(source):
        _export_policy(options, folder, template)
    else:
        _export_reward_model(options, folder, template)


def _export_reward_model(options: Namespace, folder: Path, template: dict[str, Any]) -> None:
    dtype = DTYPES[options.dtype]
    model = load(options.model, dtype=dtype, label=options.label, **template)
    _say_template(options.model, model.tokenizer)
    # The model as it was, in the folder's dtype, against the folder as transformers reads it.
    table = model.table(CHECK_TEXTS)
    scores = torch.from_numpy(score_table(model.score_packs, table, budget=model.tokens_per_pack)).float()
    difference = publish_model(
        folder,
        ModelParts(model.hf, model.network.config, _state(model.network), model.tokenizer, dtype),
        sequences=_sequences(table),
        scores=scores,
    )
    say(f"exported {folder}; transformers gives the same scores (largest difference {difference:.0e})")


def _export_policy(options: Namespace, folder: Path, template: dict[str, Any]) -> None:
    if options.label is not None:
        raise UserError(f"--label {options.label} chooses a label of a reward model, and {options.model} is a policy")
    dtype = DTYPES[options.dtype]
    policy = load_policy(options.model, dtype=dtype, **template)
    _say_template(options.model, policy.tokenizer)
    table = build_table([store_examples(CHECK_TEXTS, policy.tokenizer)], kind=RESPONSES)[0]
    ids = min(len(policy.tokenizer), policy.network.config.vocabulary)
    log_probs = table_log_probs(policy.network, table, ids, policy.tokens_per_pack)
    difference = publish_policy(
        folder,
        ModelParts(policy.hf, policy.network.config, _state(policy.network), policy.tokenizer, dtype, policy.ends),
        sequences=_sequences(table),
        log_probs=[torch.from_numpy(values) for values in log_probs],
    )
    say(f"exported {folder}; transformers gives the same log-probabilities (largest difference {difference:.0e})")


def _say_template(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    say_date(path, tokenizer)
    if line := taken_for_granted(tokenizer):
        say(line)


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def _sequences(table: GroupTable) -> list[list[int]]:
    return [sequence for row in range(len(table)) for sequence in table.sequences_of(row)]
