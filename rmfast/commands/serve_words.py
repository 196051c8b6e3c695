"""What `rmfast serve` computes together, and what it takes: options that are read before torch is imported."""

from argparse import ArgumentParser

from rmfast.commands.words import amount, positive, positive_amount


def serve_limits(command: ArgumentParser) -> None:
    """Add the options of batches and of limits."""
    add = command.add_argument_group("batches").add_argument
    tokens = "token budget of what is computed together (1024 on the CPU, else 16384)"
    add("--tokens-per-pack", type=positive, metavar="N", help=tokens)
    add("--wait-ms", type=amount, default=3.0, metavar="MS", help="a request waits so long for others, at most (3)")
    fixed = (
        "compute each response by itself: the same bits whatever else is asked, but shared prompts are computed again"
    )
    add("--fixed-packs", action="store_true", help=fixed)
    add = command.add_argument_group("limits").add_argument
    add("--queue", type=positive, default=1024, metavar="N", help="requests held at once; others get 429 (1024)")
    add("--max-body", type=positive, default=8, metavar="MB", help="largest body; others get 413 (8)")
    add("--max-responses", type=positive, default=4096, metavar="N", help="responses of a request, at most (4096)")
    add("--timeout", type=positive_amount, default=120.0, metavar="SECONDS", help="without an answer, 504 (120)")
    add("--stall", type=positive_amount, default=15.0, metavar="SECONDS", help="idle clients are dropped (15)")
