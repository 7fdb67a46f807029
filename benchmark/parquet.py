"""Image tables: Parquet files in the Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmark.data import Indices
from benchmark.errors import DataError
from benchmark.images import Pictures, digest, one_line


@dataclass(frozen=True)
class Table:
    """Images and labels of Parquet files; encoded images stay in memory.

    Attributes:
        pictures: The images.
        labels: Label of every image, int64, >= 0.
        class_names: Names that the files give to classes, empty if none.
        rows: Number of images in each file.
        fingerprint: Hash of all encoded images and labels.
    """

    pictures: Pictures
    labels: Indices
    class_names: tuple[str, ...]
    rows: tuple[int, ...]
    fingerprint: str


def read_parquet(files: Sequence[Path]) -> Table:
    """Read Parquet files in the Hugging Face layout, one after the other.

    The columns are `image` (or `img`), a struct with `bytes`, and `label`, whole numbers.

    Args:
        files: At least one file.

    Raises:
        DataError: If a file is missing, is no such file, or has other classes than the first.
    """
    parts = [_read_file(file) for file in files]
    names = parts[0][2]
    for file, part in zip(files, parts, strict=True):
        if part[2] != names:
            raise DataError(f"'{file}' names other classes than '{files[0]}'")
    rows = tuple(len(part[1]) for part in parts)
    labels = np.concatenate([part[1] for part in parts])
    content = pa.chunked_array(
        [chunk for part in parts for chunk in part[0].chunks], pa.large_binary()
    )
    _check(files, rows, labels, names)
    pictures = Pictures(
        len(labels), lambda i: BytesIO(content[i].as_py() or b""), lambda i: _where(files, rows, i)
    )
    images = (scalar.as_py() or b"" for scalar in content)
    return Table(pictures, labels, names, rows, digest(chain([labels.tobytes()], images)))


def _where(files: Sequence[Path], rows: Sequence[int], index: int) -> str:
    ends = np.cumsum(rows)
    which = int(np.searchsorted(ends, index, side="right"))
    return f"'{files[which]}', row {index - int(ends[which]) + rows[which]} (counted from 0)"


def _check(
    files: Sequence[Path], rows: Sequence[int], labels: Indices, names: tuple[str, ...]
) -> None:
    limit = len(names) or np.iinfo(np.int64).max
    wrong = np.flatnonzero((labels < 0) | (labels >= limit))
    if len(wrong):
        place, label = _where(files, rows, int(wrong[0])), labels[wrong[0]]
        raise DataError(f"{place}: label {label} is no class; the data set has {len(names)}")
    if not len(labels):
        raise DataError(f"'{files[0]}' has no rows")


def _read_file(file: Path) -> tuple[Any, Indices, tuple[str, ...]]:
    """Return the column of encoded images, the labels and the class names of one file."""
    if not file.is_file():
        raise DataError(f"'{file}' does not exist")
    try:
        with pq.ParquetFile(file) as source:
            schema = source.schema_arrow
            column = next((n for n in ("image", "img") if n in schema.names), "image")
            _check_schema(file, schema, column)
            table = source.read(columns=[column, "label"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"'{file}' is not a readable Parquet file: {one_line(error)}") from error
    if table["label"].null_count:
        row = pc.index(pc.is_null(table["label"]), value=True).as_py()
        raise DataError(f"'{file}', row {row} (counted from 0): there is no label")
    labels = table["label"].to_numpy().astype(np.int64)
    return (
        pc.struct_field(table[column], "bytes").cast(pa.large_binary()),
        labels,
        _class_names(schema),
    )


def _check_schema(file: Path, schema: Any, column: str) -> None:
    missing = [name for name in (column, "label") if name not in schema.names]
    if missing:
        found = ", ".join(schema.names)
        raise DataError(f"'{file}' has no column '{missing[0]}'; its columns are: {found}")
    kind = schema.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DataError(f"'{file}': column '{column}' is {kind}, not a struct with 'bytes'")
    if not pa.types.is_integer(schema.field("label").type):
        raise DataError(f"'{file}': column 'label' is {schema.field('label').type}, not integers")


def _class_names(schema: Any) -> tuple[str, ...]:
    metadata: dict[bytes, bytes] = schema.metadata or {}
    if b"class_names" in metadata:
        return tuple(metadata[b"class_names"].decode().splitlines())
    try:
        node: Any = json.loads(metadata.get(b"huggingface", b"null"))
    except ValueError:
        return ()
    for key in ("info", "features", "label", "names"):
        node = node.get(key) if isinstance(node, dict) else None
    return tuple(str(name) for name in node) if isinstance(node, list) else ()
