"""HTML pages from the templates beside this file: self-contained, no script, no network, dark and light.

Every value is escaped, and a character that HTML forbids is shown by its symbol: a page must show any text as it is.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rmfast.data.files import write_bytes
from rmfast.evaluation.diagnostics.words import counted
from rmfast.report.plots import DARK, Plot, render
from rmfast.report.run_folder import Row, number
from rmfast.report.summary import accuracy_line, baseline, clears_baseline, percent, skipped_line, verdict


def page(name: str, **values: Any) -> str:
    """The page of a template, of which `values` are the variables."""
    return ENVIRONMENT.get_template(name).render(values)


def visible(value: Any) -> Any:
    """Text with symbols for what HTML forbids."""
    if isinstance(value, Markup):
        return value
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", _symbol, str(value).replace("\r\n", "\n"))


def _symbol(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd" if code >= 0xD800 else f"\\x{code:02x}"


def write(value: float, kind: str) -> str:
    """A number as text: a "share", "count", "real" or "signed" one; a dash where it is not finite."""
    if not np.isfinite(value):
        return "–"
    return {"share": percent(value), "count": f"{value:,.0f}", "real": f"{value:.4g}", "signed": f"{value:+.3f}"}[kind]


def metric_table(rows: Mapping[str, Row], kinds: Sequence[tuple[str, str, str]]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a table with a column a row; metrics without any value are left out.

    Args:
        kinds: each metric's key, what it says, and how it is written (see `write`).
    """
    lines = []
    for key, label, kind in kinds:
        values = [number(row, key) for row in rows.values()]
        if np.isfinite(values).any():
            lines.append([label, *(write(value, kind) for value in values)])
    return ["", *rows], lines


def write_picture(plot: Plot, file: Path) -> dict[str, str]:
    """Write the plot as PNG; what the template's `picture` shows of it, in both themes."""
    light = render(plot)
    write_bytes(file, light)
    images = {"light": light, "dark": render(plot, DARK)}
    return {"title": plot.title, "note": plot.note} | {k: base64.b64encode(v).decode() for k, v in images.items()}


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    finalize=visible,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {"write": write, "percent": percent, "grouped": "{:,}".format, "finite": np.isfinite}
ENVIRONMENT.globals |= {
    **{"number": number, "counted": counted, "verdict": verdict, "baseline": baseline},
    **{"accuracy_line": accuracy_line, "clears_baseline": clears_baseline, "skipped_line": skipped_line},
}
