"""Chat templates that read the clock: they are given one fixed date, so that a row has the same tokens on any day.

transformers gives templates `strftime_now(format)`, today's date, which Llama 3.2's and gpt-oss's write into every
conversation. A macro of that name, put in front of such a template, takes its place: the template then says the same
wherever it is rendered, in an exported folder too.
"""

import re
from datetime import UTC, datetime

DEFAULT_DATE = "2024-07-26"
"""What Llama 3.2's template writes where there is no clock."""

Template = str | dict[str, str] | None
"""A tokenizer's: one text, or several by name."""

_CLOCK = "strftime_now"
_LITERAL = re.compile(rf"""{_CLOCK}(?:\(\s*(?:format\s*=\s*)?(?:'[^']*'|"[^"]*")\s*\)|\s+is\b)""")
"""A call whose format is written there, or the question whether there is a clock."""
_FIXED = re.compile(r"\{# template_date (\d{4}-\d\d-\d\d): [^\n]*\n")  # the line that `_macro` writes
_DIRECTIVES = (*(f"%{c}" for c in "aAwdbBmyYHIpMSfzZjUWcxXGuVeFTDRhklPs"), *(f"%-{c}" for c in "dmyHIMSj"))
"""Those that Python documents, glibc's further forms of dates and times, and numbers without leading zeros."""


def iso_date(value: object) -> str:
    """A date as YYYY-MM-DD. Raises ValueError for anything else."""
    try:
        return datetime.strptime(str(value), "%Y-%m-%d").date().isoformat()
    except ValueError:
        raise ValueError(f"is a date such as {DEFAULT_DATE}, got {str(value)!r}") from None


def fix_date(template: Template, date: str | None = None) -> Template:
    """The template with one date for its clock; a template that reads no clock as it is.

    Args:
        date: YYYY-MM-DD; None for the date that the template was given before, or else `DEFAULT_DATE`.
    """
    if isinstance(template, dict):
        return {name: _fix(text, date) for name, text in template.items()}
    return template and _fix(template, date)


def fixed_date(template: Template) -> str | None:
    """The date that `fix_date` gave to a template, or to one of several; None where none reads the clock."""
    texts = template.values() if isinstance(template, dict) else [template or ""]
    return next((found[1] for found in map(_FIXED.match, texts) if found), None)


def lines_in_front(template: Template) -> int:
    """Lines of a template that are `fix_date`'s."""
    return int(fixed_date(template) is not None)


def _fix(text: str, date: str | None) -> str:
    before = _FIXED.match(text)
    if before and date is None:
        return text
    body = text[before.end() :] if before else text
    return _macro(body, date or DEFAULT_DATE) + body if _CLOCK in body else text


def _written(moment: datetime, directive: str) -> str:
    """What a directive writes of a moment; the seconds of `%s` are those of UTC, in whatever time zone it runs."""
    return f"{moment.replace(tzinfo=UTC).timestamp():.0f}" if directive == "%s" else moment.strftime(directive)


def _macro(template: str, date: str) -> str:
    """One line that defines `strftime_now` and writes nothing.

    Templates are compiled with `trim_blocks`, which drops the newline after it and leaves those behind that one.
    """
    moment = datetime.strptime(date, "%Y-%m-%d")
    # A format that is made while rendering may hold any directive.
    literal = len(_LITERAL.findall(template)) == template.count(_CLOCK)
    names = [name for name in _DIRECTIVES if name in template or not literal]
    replaced = "".join(f'|replace("{name}", "{_written(moment, name)}")' for name in names)
    return (
        f"{{# template_date {date}: the same on any day #}}"
        f'{{%- macro {_CLOCK}(format) -%}}{{%- for part in format.split("%%") -%}}'  # %% is an escaped %
        f'{{%- if not loop.first -%}}{{{{- "%" -}}}}{{%- endif -%}}{{{{- part{replaced} -}}}}'
        "{%- endfor -%}{%- endmacro %}\n"
    )
