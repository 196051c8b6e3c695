"""How a run of PPO ends: the policy and its critic as Hugging Face folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rmfast.checkpoint.export import publish_model
from rmfast.evaluation.scoring.reward_model import find_folder
from rmfast.models.hf import read_config
from rmfast.models.names import VALUES
from rmfast.parallel.agree import main_alone
from rmfast.parallel.engine import Engine
from rmfast.report.policy.outcome import policy_summary
from rmfast.report.run_folder import read_run
from rmfast.tasks.build.adapter import export_adapter
from rmfast.tasks.build.policy_export import PolicyExport
from rmfast.trainer.ppo.learner import PPOLearner


@dataclass(frozen=True, kw_only=True)
class PPOEnding:
    """The policy in `folder/model`, its adapter in `folder/adapter`; the critic, where there is one, in
    `folder/critic`.

    Args:
        critic_path: the folder that the critic began as.
    """

    exports: PolicyExport
    learner: PPOLearner
    folder: Path
    critic_path: str

    def export(self) -> Sequence[str]:
        """See `Ending`."""
        models, exports = self.learner.models, self.exports
        adapter = models.policy.adapter()
        lines = exports.write(models.policy, self.folder / "model")
        lines += export_adapter(exports.config, exports.inputs, adapter, self.folder, exports.ends)
        return lines if models.critic is None else lines + self._critic(models.critic)

    def _critic(self, critic: Engine) -> list[str]:
        sequences = self.exports.sequences()
        weights = critic.weights()
        scores = critic.score([self.exports.pack(sequences)])[0].float().cpu()
        return main_alone(self.exports.world, lambda: self._write(weights, sequences, scores))

    def _write(self, weights: dict[str, Tensor], sequences: list[list[int]], scores: Tensor) -> list[str]:
        folder = self.folder / "critic"
        hf = read_config(find_folder(self.critic_path))
        setattr(hf, VALUES, {"shift": self.learner.value.shift, "scale": self.learner.value.scale})
        publish_model(folder, self.exports.parts(hf, weights), sequences=sequences, scores=scores)
        return [f"exported the critic, {folder} (ppo.critic of another run)"]

    def summary(self, metrics: Mapping[str, Any]) -> str:
        """See `Ending`."""
        ppo = self.exports.config.ppo
        return policy_summary(
            read_run(self.folder),
            model=self.folder / "model",
            report=self.folder / "report",
            checkpoints=self.folder / "checkpoints",
            data=(ppo.eval_prompts or ppo.prompts)[0],
        )
