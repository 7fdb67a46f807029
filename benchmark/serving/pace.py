"""A limit on images a second that all processes of a machine keep together."""

from __future__ import annotations

import time
from pathlib import Path

from filelock import FileLock

from benchmark.errors import StoreError


class Pace:
    """Lets images pass one after the other at a rate; a file says when the next may.

    Args:
        path: The file, shared by all processes that ask one endpoint.
        rate: Images a second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_suffix(".lock"))

    def wait(self, images: int) -> None:
        """Wait until so many images may be sent.

        Raises:
            StoreError: If the file cannot be written.
        """
        try:
            with self._lock:
                now = time.time()
                turn = max(now, self._next(now))
                self._path.write_text(repr(turn + images / self._rate), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"'{self._path}' cannot be written: {error.strerror}") from None
        time.sleep(turn - now)

    def _next(self, now: float) -> float:
        try:
            found = float(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return now
        return found
