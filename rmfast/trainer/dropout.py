"""What dropout draws from: it is drawn in the decoder's layers and seeded here, for each step. The megatron engine
seeds it again for each pack and stage; the native one repeats it where a step computes a pack twice."""

import torch


def seed_dropout(seed: int, step: int, rank: int, stream: int = 0) -> None:
    """Dropout of a step depends on these alone, so that a resumed run draws the same; streams do not meet.

    Args:
        stream: 0 for preference pairs, 1 for MetaRM's prompts.
    """
    # torch's generator on the CPU takes the lowest 32 bits: streams must differ there.
    torch.manual_seed((seed * 1_000_003 + step) * 4096 + 2048 * stream + rank)
