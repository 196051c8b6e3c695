"""Arrow's columns (parquet files, what `datasets` saves and loads) -> rows as JSON would hold them.

What JSON text can say is given as its reader would: the type `arrow.json` (in which `datasets` 5 stores columns whose
shape differs between rows) is decoded, maps become objects, decimals numbers, dates text; binary columns are text where
they are UTF-8, else bytes. A value that Python cannot hold makes its row a bad one.
"""

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from pyarrow import types

from rmfast.data.example import NOT_UTF8, BadRow
from rmfast.data.jsonfile import DOUBLED_KEY, Rows, parse_json
from rmfast.errors import UserError, first_line

UNREADABLE = "unreadable value"

Batch: TypeAlias = pyarrow.RecordBatch | pyarrow.Table
_Convert = Callable[[Any], Any]
_BINARY = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
_ROWS = 1024  # of a batch, so that a file is never held whole


def arrow_rows(path: Path) -> Rows:
    """Stream the rows of a .parquet file, or of an .arrow file as `datasets` saves it.

    Raises:
        UserError: the file is damaged, or has two columns or fields of one name.
    """
    number = 0
    try:
        for row in batch_rows(str(path), _parquet(path) if path.suffix == ".parquet" else _stream(path)):
            number += 1
            yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = path.suffix.removeprefix(".")
        raise UserError(f"{path}: cannot be read as {kind} after row {number}: {first_line(error)}") from None


def batch_rows(where: str, batches: Iterable[Batch]) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of batches of one schema.

    Raises:
        UserError: `where` has two columns or fields of one name.
    """
    converters: list[_Convert | None] | None = None
    for batch in batches:
        if converters is None:
            _check_names(where, "column", batch.schema)
            converters = [_converter(column.type) for column in batch.schema]
        yield from _rows(batch, converters)


def _parquet(path: Path) -> Iterator[Batch]:
    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_ROWS)


def _stream(path: Path) -> Iterator[Batch]:
    with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
        for batch in batches:
            yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))


def _check_names(where: str, what: str, fields: Iterable[pyarrow.Field]) -> None:
    """Refuse two columns of one name, at any depth: a row could hold only one of them."""
    names = set()
    for field in fields:
        if field.name in names:
            raise UserError(f"{where} has the {what} {field.name!r} twice: rename or drop one of them")
        names.add(field.name)
        if types.is_nested(field.type):
            inner = [field.type.field(place) for place in range(field.type.num_fields)]
            _check_names(where, f"field of column {field.name!r}", inner)


def _rows(batch: Batch, converters: list[_Convert | None]) -> list[dict[str, Any] | BadRow]:
    names = batch.schema.names
    try:
        columns = [_values(*column) for column in zip(names, batch.columns, converters, strict=True)]
    except BadRow as bad:
        if batch.num_rows == 1:
            return [bad]
        half = batch.num_rows // 2  # only the row that holds the value is lost
        return _rows(batch.slice(0, half), converters) + _rows(batch.slice(half), converters)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(name: str, column: pyarrow.Array | pyarrow.ChunkedArray, convert: _Convert | None) -> list[Any]:
    try:
        values = column.to_pylist()
        return values if convert is None else _each(convert)(values)
    except BadRow as bad:
        raise BadRow(bad.cause, f"column {name!r}: {bad.detail}") from None
    except UnicodeDecodeError as error:
        raise BadRow(NOT_UTF8, f"column {name!r}: {error.reason} at byte {error.start}") from None
    except (ValueError, OverflowError, LookupError) as error:  # dates that Python cannot hold; unknown time zones
        raise BadRow(UNREADABLE, f"column {name!r}: {error}") from None


def _converter(kind: pyarrow.DataType) -> _Convert | None:
    """What makes plain Python of a type's values that are not null; None where they are that already."""
    if isinstance(kind, pyarrow.BaseExtensionType):
        if kind.extension_name == "arrow.json":
            return parse_json
        return str if kind.extension_name == "arrow.uuid" else _converter(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _converter(kind.value_type)
    if types.is_map(kind):
        return _map(_converter(kind.item_type))
    if types.is_struct(kind):
        fields = {kind.field(place).name: _converter(kind.field(place).type) for place in range(kind.num_fields)}
        return _struct({name: convert for name, convert in fields.items() if convert is not None})
    if types.is_nested(kind) and not types.is_union(kind):  # lists of all sorts
        convert = _converter(kind.value_type)
        return None if convert is None else _each(convert)
    if types.is_decimal(kind):
        return _whole if kind.scale <= 0 else float
    if types.is_float16(kind):
        return float
    if types.is_temporal(kind):
        return str
    if any(test(kind) for test in _BINARY):
        return _text
    return None


def _each(convert: _Convert) -> _Convert:
    return lambda values: [None if value is None else convert(value) for value in values]


def _struct(fields: dict[str, _Convert]) -> _Convert | None:
    def convert(value: dict[str, Any]) -> dict[str, Any]:
        return value | {name: fields[name](value[name]) for name in fields if value[name] is not None}

    return convert if fields else None


def _map(convert: _Convert | None) -> _Convert:
    """Arrow gives a map as pairs, and does not look whether a key is there twice."""

    def mapping(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        value = {str(key): item if item is None or convert is None else convert(item) for key, item in pairs}
        if len(value) < len(pairs):
            raise BadRow(DOUBLED_KEY, "a map has a key twice")
        return value

    return mapping


def _whole(value: Decimal) -> int:
    return int(value)


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value
