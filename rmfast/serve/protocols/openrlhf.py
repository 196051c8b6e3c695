"""OpenRLHF's protocol of a remote reward model: whole texts as `query`, in the policy's own words.

Source: OpenRLHF 0.11.0, openrlhf/cli/serve_rm.py (the server) and openrlhf/utils/agent.py (the client).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rmfast.serve.asked import Asked, Scored, Served, Whole
from rmfast.serve.refusal import Refused


def read(data: Mapping[str, Any], served: Served) -> Asked:
    """`{"query": [text, ...], "prompts": [text, ...], "labels": [...]}`: as OpenRLHF's server does, each query is
    tokenised as it stands, without special tokens that it lacks, and its last token is scored.

    The answer is `{"rewards", "scores", "extra_logs"}`, a number for each query; of several members the logs hold the
    std over them and each one's reward.
    """
    queries = data.get("query")
    if not isinstance(queries, list) or not queries or not all(isinstance(query, str) for query in queries):
        raise Refused(422, "`query` is not a list of texts, each a prompt and its response")
    prompts = data.get("prompts")
    if prompts is not None and (not isinstance(prompts, list) or len(prompts) != len(queries)):
        raise Refused(422, f"`prompts` is not a list of {len(queries)}, one for each query")
    return Asked([Whole(query) for query in queries], _answer, None if prompts is None else list(map(repr, prompts)))


def _answer(scored: Scored) -> dict[str, Any]:
    rewards = np.concatenate(scored.rewards).tolist()
    members = np.concatenate(scored.members, axis=1)
    logs: dict[str, Any] = {}
    if len(members) > 1:
        logs = {"reward_std": members.std(0).tolist()} | {f"member_{m}": r.tolist() for m, r in enumerate(members)}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}
