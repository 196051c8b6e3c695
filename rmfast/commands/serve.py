"""rmfast serve: rewards over HTTP."""

import asyncio
import ipaddress
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from rmfast.commands.flags import check_models, device_of, grouped, load_models
from rmfast.console import say
from rmfast.errors import UserError

NEEDS = ("aiohttp", "prometheus_client")
ON_CPU, ON_GPU = 1024, 16384  # tokens: of more the CPU gains nothing, and clients wait longer


def serve(options: Namespace) -> None:
    """rmfast serve"""
    if options.k is not None and options.combine != "mean-k-std":
        raise UserError("--k belongs to --combine mean-k-std")
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise UserError(f"rmfast serve needs {' and '.join(missing)}: pip install 'rmfast[serve]'")
    token = None if options.token_file is None else read_token(Path(options.token_file))
    check_models(options.models, options)
    from rmfast.serve.app import Limits, Server  # what they need may not be installed
    from rmfast.serve.asked import Served
    from rmfast.serve.body import MEGABYTE
    from rmfast.serve.panel import Model, Panel
    from rmfast.serve.run import listen, run

    limits = Limits(
        requests=options.queue,
        body=options.max_body * MEGABYTE,
        responses=options.max_responses,
        timeout=options.timeout,
        stall=options.stall,
    )
    listening = listen(options.host, options.port, limits.stall)
    if options.tokens_per_pack is None:
        options.tokens_per_pack = ON_CPU if device_of(options) == "cpu" else ON_GPU
    models = [cast(Model, load_models(group, options)) for group in grouped(options.models, options)]
    k = 1.0 if options.k is None else options.k
    panel = Panel(models, rule=options.combine, k=k, alone=options.fixed_packs)
    hf = models[0].hf
    served = Served(
        names=(options.name or " + ".join(options.models), *options.models),
        label=next(iter((hf.id2label or {}).values()), "LABEL_0"),
        activated=hf.problem_type != "regression",
        rule=panel.rule,
        members=panel.members,
    )
    server = Server(panel, served, limits, budget=options.tokens_per_pack, wait=options.wait_ms / 1000, token=token)
    host, port = listening.getsockname()[:2]

    def ready() -> None:
        if token is None and not ipaddress.ip_address(host).is_loopback:
            say(f"whoever reaches {host} can ask, as there is no --token-file")
        address = f"[{host}]" if ":" in host else host
        many = f"{panel.members} members by {panel.rule}" if panel.members > 1 else "1 reward model"
        say(f"serving {many} at http://{address}:{port}: /score /get_reward /classify /pooling /health /metrics")

    asyncio.run(run(server, listening, ready))
    say("stopped; all that was taken is answered")


def read_token(path: Path) -> str:
    """The token of a file's only line."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {path}: {getattr(error, 'strerror', None) or 'is not UTF-8'}") from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"--token-file {path}: one word of ASCII characters on one line is a token")
    return token
