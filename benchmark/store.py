"""One file per finished shard, written beside and renamed, checked when read."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmark.errors import StoreError
from benchmark.spec import SCHEMA, digest

_STALE = 3600.0  # seconds after which a temporary file was left by a killed run


class Store:
    """A folder of results.

    Args:
        folder: Where shards, failures and tables lie; made if missing.

    Attributes:
        damaged: What was wrong with files that the last look at all shards passed over.

    Raises:
        StoreError: If the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        self.failures = folder / "failures"
        self.damaged: list[str] = []
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.shards):
                pass
        except OSError as error:
            raise StoreError(f"cannot write results to '{folder}': {error.strerror}") from None

    def sweep(self) -> None:
        """Remove what killed runs left half-written, all of it in a folder of our own."""
        for left in self.shards.glob("*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE:
                    left.unlink()

    def write(self, key: str, content: Mapping[str, Any]) -> None:
        """Write a finished shard whole, or not at all.

        Raises:
            StoreError: If the disk is full or the folder not writable.
        """
        body = {"schema": SCHEMA, "key": key, **content}
        text = json.dumps({**body, "digest": digest(body)}, indent=1, allow_nan=False)
        self._place(self.shards / f"{key}.json", text.encode())

    def write_table(self, name: str, data: bytes) -> None:
        """Replace a table.

        Raises:
            StoreError: If the disk is full or the folder not writable.
        """
        self._place(self.folder / name, data)

    def fail(self, label: str, traceback: str) -> None:
        """Keep the traceback of a shard that failed; it leaves no number."""
        try:
            self.failures.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write '{self.failures}': {error.strerror}") from None
        self._place(self.failures / f"{label}.txt", traceback.encode())

    def forgive(self, label: str) -> None:
        """Forget a failure that has been repaired."""
        (self.failures / f"{label}.txt").unlink(missing_ok=True)

    def read(self, key: str) -> dict[str, Any] | None:
        """Return a shard, None if it is not there.

        Raises:
            StoreError: If the file is damaged or was written by a newer version.
        """
        path = self.shards / f"{key}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content.pop("digest")
            whole = found == digest(content) and content["key"] == key
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"shard file '{path}' is damaged: {reason}") from None
        if content.get("schema") != SCHEMA:
            raise StoreError(
                f"shard file '{path}' has schema {content.get('schema')}, expected {SCHEMA}"
            )
        if not whole:
            raise StoreError(f"shard file '{path}' is damaged: its digest does not match")
        return dict(content)

    def saved(self) -> list[str]:
        """Keys of all shard files, sorted."""
        return sorted(path.stem for path in self.shards.glob("*.json"))

    def intact(self) -> Iterator[dict[str, Any]]:
        """Iterate over the shards that can be read, by key; `damaged` tells of the others."""
        self.damaged.clear()
        for key in self.saved():
            try:
                content = self.read(key)
            except StoreError as error:
                self.damaged.append(str(error))
                continue
            if content is not None:
                yield content

    def _place(self, path: Path, data: bytes) -> None:
        """Write a file so that it is there whole or not at all, whatever happens meanwhile."""
        name: str | None = None
        try:
            with tempfile.NamedTemporaryFile(
                dir=self.shards, prefix=f"{path.stem}.", suffix=".tmp", delete=False
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
