"""Files that are there whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmark.errors import StoreError


def place(path: Path, data: bytes, beside: Path | None = None) -> None:
    """Write a file beside its place and rename it; folders are made.

    Args:
        path: The file.
        data: Its content.
        beside: Folder of the temporary file, on the same file system; None means that of `path`.

    Raises:
        StoreError: If the disk is full or the folder not writable.
    """
    name: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=beside or path.parent, prefix=f"{path.stem}.", suffix=".tmp", delete=False
        ) as file:
            name = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        raise StoreError(f"cannot write '{path}': {error.strerror}") from None
