"""The pages of docs: their tables of keys are the config's, and their links lead somewhere."""

import re
from pathlib import Path
from typing import Any

import pytest

from rmfast.config import Config, known_keys

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "versions.md")
HEADER = "| key | default | what it does |"


def key_rows(page: Path) -> list[tuple[str, str]]:
    """(key, default) of each row of a page's tables of keys."""
    lines = page.read_text(encoding="utf-8").splitlines()
    rows: list[tuple[str, str]] = []
    for start in (i for i, line in enumerate(lines) if line == HEADER):
        for line in lines[start + 2 :]:
            if not line.startswith("|"):
                break
            key, default, *_ = (cell.strip() for cell in line.strip("|").split("|"))
            rows.append((key.strip("`"), default.strip("`")))
    return rows


def default_of(key: str) -> Any:
    """A key's default, "required" where it has none."""
    *section, name = key.split(".")
    fields = Config.model_fields
    if section:
        fields = fields[section[0]].annotation.model_fields  # type: ignore[union-attr]
    field = fields[name]
    return "required" if field.is_required() else field.default


def as_written(value: Any) -> str:
    """A default as a table has it: numbers as short as they go."""
    if isinstance(value, tuple):
        return "[" + ", ".join(as_written(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"{value:.10g}".replace("e-0", "e-")
    return str(value)


def test_every_config_key_is_in_one_table_with_its_default() -> None:
    rows = [row for page in PAGES for row in key_rows(page)]
    assert sorted(key for key, _ in rows) == sorted(known_keys())
    written = dict(rows)
    assert written == {key: as_written(default_of(key)) for key in written}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page.name}: {target}"
