"""Section `sft`: supervised fine-tuning on demonstrations."""

from pydantic import Field

from rmfast.config.base import Section, refuse
from rmfast.config.sections import Shared
from rmfast.config.unused import refuse_unused
from rmfast.data.row_kinds import Turns


class SFTConfig(Section):
    turns: Turns = Field(
        "all", description="of a conversation learn all of the assistant's turns, or the last one (ppo.ptx_data too)"
    )

    def check(self, config: Shared) -> None:
        refuse_unused(config)
        refuse(
            config.model.top_layers == 0, "model.top_layers", "0 trains the reward head alone, and task sft has none"
        )
