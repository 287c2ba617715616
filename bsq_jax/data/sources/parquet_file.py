"""One Parquet file: where its pictures and classes stand, and reading a row group of pictures.

pyarrow is imported where it is needed: it need not be installed.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.data.records import BrokenRecord
from bsq_jax.data.retry import with_retries
from bsq_jax.data.sources.stored_classes import Value, class_value

_SHOWN = 8  # columns that a message names
_IMAGE, _LABEL, _BYTES = "image", "label", "bytes"


@dataclasses.dataclass(frozen=True)
class ParquetFile:
    """What is known of a file without reading its pictures.

    Attributes:
      path: of the file.
      column: that has the pictures: ``image``, or ``image.bytes`` of a struct.
      rows: of each row group: int64 ``[group]``.
      nbytes: of the pictures of each row group, not compressed: int64 ``[group]``.
      codes: which of ``values`` is the class of each row, or -1: int32 ``[row]``.
      values: what is stored of classes.
      classes: names of the classes by their numbers, where they are stored.
      problem: what the file is, such as ``no Parquet file``; empty if it can be read.
    """

    path: pathlib.Path
    column: str = ""
    rows: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    nbytes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    codes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    values: tuple[Value, ...] = ()
    classes: tuple[str, ...] = ()
    problem: str = ""

    def read(self, group: int) -> Any:
        """The pictures of a row group: a pyarrow array of bytes, ``[row]``.

        Raises:
          BrokenRecord: what is stored there is damaged.
          OSError: the file cannot be read.
        """
        import pyarrow.compute
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.path, page_checksum_verification=True) as file:
                table = file.read_row_group(group, columns=[self.column], use_threads=False)
            column = table.column(0)  # the one; its name may have dots of its own
            if pyarrow.types.is_struct(column.type):
                column = pyarrow.compute.struct_field(column, 0)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = f"row group {group} of the file cannot be read ({_reason(error)})"
            raise BrokenRecord(reason) from error
        if len(column) != self.rows[group]:
            raise BrokenRecord("the file has changed since it was opened")
        return column


def open_parquet_file(path: pathlib.Path) -> ParquetFile:
    """Reads the footer and the column of classes of a file.

    Raises:
      UserError: it has no column of pictures, or cannot be read because of the storage.
    """
    try:
        return with_retries(lambda: _open(path))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): repair it or take it out, because "
            "without its pictures the order of all others would change"
        ) from error


def _open(path: pathlib.Path) -> ParquetFile:
    import pyarrow.parquet

    if not path.stat().st_size:
        return ParquetFile(path, problem="empty")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
            column = _image_column(path, schema)
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            codes, values = _labels(file, schema, metadata.num_rows)
    except UserError:
        raise
    except Exception as error:  # of pyarrow, some of which are OSError without a number
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return ParquetFile(path, problem=f"no Parquet file that can be read ({_reason(error)})")
    return ParquetFile(
        path,
        column,
        rows=np.array([group.num_rows for group in groups], np.int64),
        nbytes=np.array([_size(group, column) for group in groups], np.int64),
        codes=codes,
        values=values,
        classes=_class_names(schema),
    )


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _size(group: Any, column: str) -> int:
    """Bytes of a column in a row group, not compressed."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == column)


def _image_column(path: pathlib.Path, schema: Any) -> str:
    """The column of pictures: ``image``, or the only one that may be."""
    import pyarrow.types as types

    def holds_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = {}
    for field in schema:
        if holds_bytes(field.type):
            found[field.name] = field.name
        elif types.is_struct(field.type):
            inner = {part.name: part.type for part in field.type}
            if _BYTES in inner and holds_bytes(inner[_BYTES]):
                found[field.name] = f"{field.name}.{_BYTES}"
    if _IMAGE in found:
        return found[_IMAGE]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UserError(
            f"{path} has no column 'image' and several that may be pictures "
            f"({', '.join(found)}): name one of them 'image'"
        )
    columns = ", ".join(f"{field.name}: {field.type}" for field in list(schema)[:_SHOWN])
    columns += ", ..." if len(schema) > _SHOWN else ""
    raise UserError(
        f"{path} has no column of pictures, which is 'image' with the bytes of encoded files, "
        f"binary or a struct with 'bytes' (it has {columns or 'no columns'})".replace("\n", " ")
    )


def _labels(file: Any, schema: Any, rows: int) -> tuple[np.ndarray, tuple[Value, ...]]:
    """For each row which of the values is its class, and these."""
    import pyarrow.types as types

    none = np.full(rows, -1, np.int32), ()
    if _LABEL not in schema.names:
        return none
    kind = schema.field(_LABEL).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    wanted = (types.is_integer, types.is_boolean, types.is_string, types.is_large_string)
    if not any(fits(kind) for fits in wanted):
        return none
    stored = file.read(columns=[_LABEL], use_threads=False).column(_LABEL).to_pylist()
    found = [class_value(value) for value in stored]
    places = {value: place for place, value in enumerate(dict.fromkeys(found)) if value is not None}
    values = tuple(places)
    places = {value: place for place, value in enumerate(values)}
    codes = [-1 if value is None else places[value] for value in found]
    return np.array(codes, np.int32), values


def _class_names(schema: Any) -> tuple[str, ...]:
    """Names of classes, as the Hugging Face libraries keep them in the schema."""
    try:
        stored = json.loads((schema.metadata or {})[b"huggingface"])
        names = stored["info"]["features"][_LABEL]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return ()
