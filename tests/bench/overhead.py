"""Time of a query of each defense over the bare victim's: python tests/bench/overhead.py.

One process, one thread; defense and bare victim are timed in turn, medians. Data and weights as for
`bench` (QUERYBENCH_DATA, QUERYBENCH_WEIGHTS).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from tabulate import tabulate

from benchmark.backends import Workers
from benchmark.catalogue import DEFENSES
from benchmark.config import load_config
from benchmark.machine import settle
from benchmark.muster import muster, roster
from benchmark.preparation import prepare
from benchmark.request import make_request
from benchmark.store import Store
from benchmark.surroundings import Surroundings
from benchmark.tasks.look import run_look


def main() -> None:
    """Print a table of every defense, or of those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--defenses", default=",".join(entry.name for entry in DEFENSES))
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--model", default="resnet20")
    given = parser.parse_args()
    settle()
    surroundings = Surroundings(load_config())
    request = make_request(
        attacked=False,
        defenses=given.defenses,
        dataset=given.dataset,
        model=given.model,
        images=64,
        votes=1,
    )
    called = roster(request, surroundings)
    with tempfile.TemporaryDirectory() as folder:
        prepare([called], surroundings, Store(Path(folder)), Workers(1), Console(stderr=True))
    rows = []
    for look in muster(called, surroundings, {}).looks:
        found = run_look(look, surroundings)
        work = {"operations": f"{found['measured']['forward_equivalents']:.2f}"}
        rows.append({"defense": look.defense.name, **found["timing"], **work})
    print(tabulate(rows, headers="keys", tablefmt="pipe"))


if __name__ == "__main__":
    main()
