"""Runs a suite again and compares it with its reference."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmark import api
from benchmark.backends import Workers
from benchmark.errors import StoreError
from benchmark.recorded import Recorded
from benchmark.regression import Verdict, compare
from benchmark.store import SHARDS
from benchmark.suites import make_requests
from benchmark.surroundings import Surroundings


def regress(
    suite: str,
    root: Path,
    surroundings: Surroundings,
    workers: Workers,
    out: Path | None = None,
) -> Verdict:
    """Run a suite from nothing and compare it with the reference folder of its name.

    Args:
        suite: Name of a suite, or path of a YAML file.
        root: Folder of reference folders.
        surroundings: Where; the kind of device is that of the reference.
        workers: Who runs it.
        out: Folder of the rerun, without results; None means one that is removed at the end.

    Raises:
        BenchError: If there is no such suite or reference, or the folder has results already.
        ShardsFailedError: If some shards failed.
    """
    requests = make_requests(suite)
    folder = root / Path(suite).stem
    if not folder.is_dir():
        raise StoreError(f"suite '{suite}' has no reference: there is no folder '{folder}'")
    before = Recorded.read(folder)
    if out and (out / SHARDS).exists():
        raise StoreError(f"'{out}' has results already: a rerun begins with nothing")
    surroundings = replace(surroundings, device=before.device)
    with tempfile.TemporaryDirectory(prefix="querybench-") as temporary:
        place = out or Path(temporary)
        console = Console(stderr=True)
        api.execute_requests(requests, surroundings, place, workers, console)
        return compare(before, Recorded.read(place))
