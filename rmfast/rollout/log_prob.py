"""Log-probabilities of the tokens of responses, from packs."""

import numpy as np
import torch

from rmfast.data.loader import rank_packs
from rmfast.data.table import GroupTable
from rmfast.models.network import Network, Reads


@torch.no_grad()
def table_log_probs(network: Network, table: GroupTable, ids: int, budget: int) -> list[np.ndarray]:
    """fp32 [L] of each response of a table: natural logs of softmax(logits) over the first `ids` ids, of its tokens
    from the first that is not the prompt's on.

    Args:
        budget: tokens of a pack; a larger group is a pack alone.
    """
    rows = np.arange(len(table))
    packs, _ = rank_packs(table, rows, ranks=1, rank=0, budget=max(budget, int(table.stored.max())), predicts="all")
    out: list[np.ndarray] = [np.empty(0, np.float32)] * int(table.first_response[-1])
    device = network.norm.weight.device
    for pack in packs:
        inputs = pack.to(device)
        reads = Reads(scores=inputs.scored[:0], log_prob=(inputs.targets.rows, inputs.targets.ids), ids=ids)
        log_prob = network(inputs, reads).log_prob
        assert log_prob is not None
        counts = np.bincount(pack.targets.response.numpy(), minlength=len(pack.responses))
        parts = np.split(log_prob.float().cpu().numpy(), np.cumsum(counts)[:-1])
        for response, values in zip(pack.responses.tolist(), parts, strict=True):
            out[response] = values
    return out
