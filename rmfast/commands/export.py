"""rmfast export: a checkpoint as a Hugging Face folder."""

from argparse import Namespace
from pathlib import Path

import torch

from rmfast.checkpoint.export import CHECK_TEXTS, publish_model
from rmfast.console import say
from rmfast.data.probe import taken_for_granted
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reward_model import find_folder, load
from rmfast.evaluation.scoring.score import score_table
from rmfast.models.config import DTYPES
from rmfast.outputs.overlap import Input, Output, check_overlap
from rmfast.tasks.build.model import say_date


def export(options: Namespace) -> None:
    """rmfast export"""
    folder = Path(options.out)
    if folder.exists():
        raise UserError(f"--out {folder} exists already; name a folder that does not")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"--out {folder}: there is no folder {folder.absolute().parent}")
    check_overlap([Output("--out", folder, "name another")], [Input("CKPT", find_folder(options.model))])
    dtype = DTYPES[options.dtype]
    template = {"chat_template": options.chat_template, "template_date": options.template_date}
    model = load(options.model, dtype=dtype, label=options.label, **template)
    say_date(options.model, model.tokenizer)
    state = {name: p.detach() for name, p in model.network.named_parameters()}
    if line := taken_for_granted(model.tokenizer):
        say(line)
    # The model as it was, in the folder's dtype, against the folder as transformers reads it.
    table = model.table(CHECK_TEXTS)
    scores = torch.from_numpy(score_table(model.score_packs, table, budget=model.tokens_per_pack)).float()
    sequences = [s for row in range(len(table)) for s in table.sequences_of(row)]
    difference = publish_model(
        folder,
        hf=model.hf,
        config=model.network.config,
        state=state,
        tokenizer=model.tokenizer,
        dtype=dtype,
        sequences=sequences,
        scores=scores,
    )
    say(f"exported {folder}; transformers gives the same scores (largest difference {difference:.0e})")
