"""One file per finished piece of work, written beside and renamed, checked when read."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmark.errors import StoreError
from benchmark.files import place
from benchmark.spec import SCHEMA, digest

_STALE = 3600.0  # seconds after which a temporary file was left by a killed run
SHARDS, LOOKS, CALIBRATIONS = "shards", "looks", "calibrations"
THEFTS, TRANSFERS = "thefts", "transfers"


class Store:
    """A folder of results.

    Args:
        folder: Where finished work, failures and tables lie; made if missing.
        writable: It is to be written, not only read.

    Attributes:
        damaged: What was wrong with files that were passed over since it was last cleared.

    Raises:
        StoreError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, *, writable: bool = True) -> None:
        self.folder = folder
        self.shards = folder / SHARDS
        self.failures = folder / "failures"
        self.damaged: list[str] = []
        if not writable:
            return
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.shards):
                pass
        except OSError as error:
            raise StoreError(f"cannot write results to '{folder}': {error.strerror}") from None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from rebuilding tables, so that theirs cannot be older and come later.

        Raises:
            StoreError: If the folder cannot be written.
        """
        try:
            lock = FileLock(self.folder / ".lock").acquire()
        except OSError as error:
            raise StoreError(f"cannot lock '{self.folder}': {error.strerror}") from None
        with lock:
            yield

    def sweep(self) -> None:
        """Remove what killed runs left half-written, all of it in a folder of our own."""
        for left in self.shards.glob("*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE:
                    left.unlink()

    def write(self, key: str, content: Mapping[str, Any], kind: str = SHARDS) -> None:
        """Write a finished piece of work whole, or not at all.

        Raises:
            StoreError: If the disk is full or the folder not writable.
        """
        body = {"schema": SCHEMA, "key": key, **content}
        text = json.dumps({**body, "digest": digest(body)}, allow_nan=False)
        place(self.folder / kind / f"{key}.json", text.encode(), self.shards)

    def write_table(self, name: str, data: bytes) -> None:
        """Replace a table.

        Raises:
            StoreError: If the disk is full or the folder not writable.
        """
        place(self.folder / name, data, self.shards)

    def fail(self, label: str, traceback: str) -> None:
        """Keep the traceback of a shard that failed; it leaves no number."""
        place(self.failures / f"{label}.txt", traceback.encode(), self.shards)

    def forgive(self, label: str) -> None:
        """Forget a failure that has been repaired."""
        (self.failures / f"{label}.txt").unlink(missing_ok=True)

    def read(self, key: str, kind: str = SHARDS) -> dict[str, Any] | None:
        """Return a piece of work, None if it is not there.

        Raises:
            StoreError: If the file is damaged or was written by a newer version.
        """
        path = self.folder / kind / f"{key}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content.pop("digest")
            whole = found == digest(content) and content["key"] == key
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{kind[:-1]} file '{path}' is damaged: {reason}") from None
        if content.get("schema") != SCHEMA:
            raise StoreError(
                f"{kind[:-1]} file '{path}' has schema {content.get('schema')}, expected {SCHEMA}"
            )
        if not whole:
            raise StoreError(f"{kind[:-1]} file '{path}' is damaged: its digest does not match")
        return dict(content)

    def saved(self, kind: str = SHARDS) -> list[str]:
        """Keys of all files of a kind, sorted."""
        return sorted(path.stem for path in (self.folder / kind).glob("*.json"))

    def intact(self, kind: str = SHARDS) -> Iterator[dict[str, Any]]:
        """Iterate over the files that can be read, by key; `damaged` tells of the others."""
        for key in self.saved(kind):
            try:
                content = self.read(key, kind)
            except StoreError as error:
                self.damaged.append(str(error))
                continue
            if content is not None:
                yield content
