"""Export of a policy, whatever trained it: a causal language model's folder."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig

from rmfast.checkpoint.export import ModelParts, publish_policy, rows_to_check
from rmfast.config import Config
from rmfast.data.example import Example
from rmfast.data.pack import Pack, build_pack
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.store import store_examples
from rmfast.data.table import build_table
from rmfast.models.config import DTYPES, decoder_config
from rmfast.models.network import Reads
from rmfast.parallel.agree import main_alone
from rmfast.parallel.engine import Engine
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class PolicyExport:
    """What exports of a run share.

    Args:
        ends: ids that end an answer.
    """

    config: Config
    world: World
    inputs: Inputs
    ends: Collection[int]

    def sequences(self) -> list[list[int]]:
        """Some of the table's sequences, of several lengths, with an end behind them: exports are checked by them."""
        table, end = self.inputs.table, min(self.ends, default=0)
        return [[*ids, end] for row in rows_to_check(table) for ids in table.sequences_of(int(row))]

    def pack(self, sequences: Sequence[list[int]]) -> Pack:
        """The sequences, all of whose tokens but the first are predicted."""
        examples = [Example(None, (ids,), prompt_ids=1) for ids in sequences]
        table = build_table([store_examples(examples, self.inputs.tokenizer)], kind=RESPONSES)[0]
        return build_pack(table, np.arange(len(table)), predicts="all")

    def write(self, engine: Engine, folder: Path) -> list[str]:
        """Write the engine's weights and prove that transformers agrees. All ranks call it.

        Returns:
            Lines that say so; none on other ranks than the first.
        """
        sequences = self.sequences()
        ids = min(len(self.inputs.tokenizer), self.inputs.decoder.vocabulary)
        weights = engine.weights()

        def reads(pack: Pack) -> Reads:
            return Reads(scores=pack.scored[:0], log_prob=(pack.targets.rows, pack.targets.ids), ids=ids)

        (outputs,) = engine.read([self.pack(sequences)], reads)
        assert outputs.log_prob is not None
        log_probs = outputs.log_prob.float().cpu().split([len(ids) - 1 for ids in sequences])
        parts = self.parts(self.inputs.hf, weights)
        return main_alone(self.world, lambda: self._write(folder, parts, sequences, log_probs))

    def _write(
        self, folder: Path, parts: ModelParts, sequences: list[list[int]], log_probs: Sequence[Tensor]
    ) -> list[str]:
        difference = publish_policy(folder, parts, sequences=sequences, log_probs=log_probs)
        same = "transformers gives the same log-probabilities"
        return [f"exported {folder}; {same} (largest difference {difference:.0e})"]

    def parts(self, hf: PreTrainedConfig, weights: dict[str, Tensor]) -> ModelParts:
        """What a folder is made of."""
        dtype = DTYPES[self.config.model.dtype]
        merged = self.config.model.adapter != "none"
        return ModelParts(hf, decoder_config(hf), weights, self.inputs.tokenizer, dtype, self.ends, merged)
