"""Section `ensemble`: its members, and how they are spread over ranks and jobs."""

from typing import Annotated, Literal

from pydantic import Field

from rmfast.config.base import Section, refuse
from rmfast.config.sections import ParallelConfig, Shared


class EnsembleConfig(Section):
    members: int = Field(10, ge=2, le=1024, description="reward models, each of another data order and, if new, head")
    folds: int | None = Field(None, ge=2, description="K: member m leaves out and scores fold m mod K; null: in-sample")
    mode: Literal["full", "top_layers", "heads"] = Field(
        "full", description="a reward run each, or top layers (model.top_layers) or heads alone on one frozen trunk"
    )
    state_memory: float = Field(
        16.0, ge=0, le=1e6, description="mode top_layers: GiB for the trunk's states of all rows, so that orders differ"
    )
    spread: Literal["turn", "ranks"] = Field("turn", description="all ranks on one member, or a group of ranks on each")
    ranks_per_member: int | None = Field(
        None, ge=1, description="spread ranks: size of a group; null: 1, for megatron parallel.tensor x pipeline"
    )
    part: Annotated[int, Field(ge=0)] | Literal["vote"] | None = Field(
        None, description="for jobs that share run.dir: train this member alone, or vote over all; null: everything"
    )

    def group_size(self, parallel: ParallelConfig) -> int:
        """Ranks of each group under `spread: ranks`."""
        return self.ranks_per_member or parallel.tensor * parallel.pipeline

    def check(self, config: Shared) -> None:
        model, parallel = config.model, config.parallel
        folds, members = self.folds or 0, self.members
        above = f"({folds}) is above ensemble.members ({members}): no member would score some folds"
        refuse(folds > members, "ensemble.folds", above)
        refuse(not config.data.shuffle, "data.shuffle", "false gives all members of an ensemble one data order")
        if self.part is not None:
            no_member = self.part != "vote" and self.part >= members
            known = f"they are 0 to {members - 1} (ensemble.members)"
            refuse(no_member, "ensemble.part", f"({self.part}) is no member: {known}")
            alone = self.mode == "full" and self.spread == "turn"
            refuse(not alone, "ensemble.part", "needs ensemble.mode full and ensemble.spread turn")
            moves = "never would move away what jobs of other members (ensemble.part) are at"
            refuse(config.run.resume == "never", "run.resume", moves)
        refuse(
            self.ranks_per_member and self.spread == "turn",
            "ensemble.ranks_per_member",
            "belongs to ensemble.spread ranks; under turn all ranks share each member",
        )
        refuse(
            (model.heads or 1) > 1,
            "model.heads",
            f"({model.heads}) above 1: a member of an ensemble has one head; leave model.heads out "
            "and set ensemble.members",
        )
        if self.mode != "full":
            self._check_together(config)
        budget = EnsembleConfig.model_fields["state_memory"].default
        unused = self.mode != "top_layers" and self.state_memory != budget
        refuse(unused, "ensemble.state_memory", "belongs to ensemble.mode top_layers")
        size = self.group_size(parallel)
        refuse(
            parallel.engine == "megatron" and size % (parallel.tensor * parallel.pipeline),
            "ensemble.ranks_per_member",
            f"({size}) is no multiple of parallel.tensor {parallel.tensor} x parallel.pipeline {parallel.pipeline}, "
            "which hold one model",
        )
        one_model = "belongs to one model; evaluate an ensemble with rmfast eval CKPT... --suite"
        refuse(config.eval.suites, "eval.suites", one_model)
        refuse(
            config.denoise_options().needs_strength,
            "data.denoise",
            "and denoise.* go by strengths, which task ensemble is there to make: leave them out, and "
            "set them for task reward on the ensemble's data.jsonl (denoise.smooth of all edges may stay)",
            "denoise",
        )

    def _check_together(self, config: Shared) -> None:
        """What members that are trained at once, over one trunk, do not take."""
        mode, model, objective, parallel = self.mode, config.model, config.objective, config.parallel
        if mode == "heads":
            refuse(
                model.top_layers or model.dropout or objective.lm,
                "ensemble.mode",
                "heads trains one head a member on a frozen trunk: it takes no model.top_layers above 0, "
                "model.dropout or objective.lm",
            )
        else:
            refuse(
                not model.top_layers,
                "model.top_layers",
                "says how many layers ensemble.mode top_layers trains: set it to 1 or more",
            )
            refuse(objective.lm, "objective.lm", "reads a head that ensemble.mode top_layers does not train")
            refuse(
                parallel.data == "fsdp", "parallel.data", "fsdp shards one model; ensemble.mode top_layers needs ddp"
            )
        nothing = f"trains nothing in ensemble.mode {mode}"
        refuse(objective.contrastive != "none", "objective.contrastive", nothing)
        refuse(model.adapter != "none", "model.adapter", nothing)
        what = "heads" if mode == "heads" else "members"
        refuse(
            self.spread == "ranks" or parallel.cuda_graphs,
            "ensemble.mode",
            f"{mode} trains all {what} at once: it takes no ensemble.spread ranks and no parallel.cuda_graphs",
        )
        refuse(parallel.engine == "megatron", "parallel.engine", "megatron runs ensemble.mode full alone")
