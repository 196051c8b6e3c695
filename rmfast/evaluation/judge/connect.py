"""A judge's endpoint from its address, with the key that the environment holds."""

import os
from typing import Any
from urllib.parse import urlsplit

from rmfast.errors import UserError
from rmfast.evaluation.judge.backend import Backend, Sampling

KEYS = ("RMFAST_JUDGE_KEY", "OPENAI_API_KEY")  # variables of the environment, the first that is set
PLACEHOLDER = "none"  # a local server takes any key, but wants one


def connect(name: str, address: str, model: str, sampling: Sampling, **options: Any) -> Backend:
    """The judge behind an OpenAI-compatible endpoint.

    Args:
        name: of what gave the address, in errors. options: else that `Endpoint` takes.

    Raises:
        UserError: no address, a key that is none, the package openai not installed.
    """
    url = address.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError:
        whole = False
    if not whole or parts.username or parts.password or parts.query or parts.fragment:
        # The address itself is not shown: it may hold a key.
        raise UserError(f"{name}: want http://HOST:PORT/v1 or https://HOST/v1, without a user, key or query in it")
    found = next(((k, key) for k in KEYS if (key := os.environ.get(k, "").strip())), ("", PLACEHOLDER))
    variable, key = found
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{variable} holds characters that no key has; set it to the key alone")
    try:
        from rmfast.evaluation.judge.endpoint import Endpoint
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise UserError(f"{name} needs the package openai: pip install 'rmfast[judge]'") from None
    return Endpoint(url, model, sampling, key=key, **options)
