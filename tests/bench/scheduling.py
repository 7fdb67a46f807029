"""A plan of 100,000 cells, tables of 1,000,000 image rows: python tests/bench/scheduling.py.

Time by the clock and of this process, and its peak memory; start-up of Python and torch aside.
"""

from __future__ import annotations

import datetime
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tabulate import tabulate

from benchmark.config import Config
from benchmark.forecast import forecast
from benchmark.outcome import content
from benchmark.plan import draft, plan
from benchmark.request import make_request
from benchmark.spec import Shard
from benchmark.store import Store
from benchmark.surroundings import Surroundings
from benchmark.tables import rebuild
from benchmark.tasks.attack import ShardResult

HERE = Surroundings(Config())
BUDGETS = (100, 300, 1000, 2500)


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        rows = [_timed("a plan of 100,000 cells", lambda: _plan(out))]
        store = Store(out)
        _fill(store)
        rows.append(_timed("tables of 1,008,000 image rows", lambda: rebuild(store)))
    print(tabulate(rows, ["work", "clock, s", "process, s", "peak, MiB"], "pipe", floatfmt=".1f"))


def _timed(name: str, work: Callable[[], object]) -> list[object]:
    began, spent = time.perf_counter(), time.process_time()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [name, time.perf_counter() - began, time.process_time() - spent, round(peak)]


def _listed(name: str, knob: str, count: int) -> str:
    return ",".join(f"{name}[{knob}={0.001 * place:.3f}]" for place in range(1, count + 1))


def _plan(out: Path) -> None:
    attacks, defenses = _listed("square", "p", 100), _listed("rnd", "sigma", 99)
    eps = [0.01 * place for place in range(1, 11)]
    request = make_request(attacks=attacks, defenses=defenses, images=100, eps=eps)
    (share,) = forecast([request], HERE, out).shares.values()
    assert len(share.shards) == 100_000


def _fill(store: Store) -> None:
    """Write shards of 14 attacks, 36 defenses and 2 seeds with 1,000 images each."""
    rng = np.random.default_rng(0)
    attacks, defenses = _listed("square", "p", 14), _listed("rnd", "sigma", 35)
    given = {"attacks": attacks, "defenses": defenses, "images": 1000, "queries": BUDGETS[-1]}
    for seed in (0, 1):
        request = make_request(**given, budgets=BUDGETS, seed=seed)
        for shard in plan(draft(request, HERE), HERE).shards:
            result = ShardResult(shard, _images(shard, rng), _COSTS, 1.0)
            started = datetime.datetime.now(datetime.UTC)
            store.write(shard.key, content(result, "cpu", started))


_COSTS = dict.fromkeys(("counted_queries", "verification_queries", "audit_queries"), 1)
_COSTS |= {"flagged_queries": 0, "batch": 64}


def _images(shard: Shard, rng: np.random.Generator) -> dict[str, list[object]]:
    """Columns of made-up images."""
    broken = [int(n) if n <= BUDGETS[-1] else None for n in rng.integers(1, 4000, shard.count)]
    same = {"target": None, "clean_draws": 9, "clean_correct": 9, "attacked": True}
    same |= {"distance": None, "trace_queries": None, "trace_distances": None}
    return {
        "image": list(range(shard.first, shard.first + shard.count)),
        "label": rng.integers(0, 10, shard.count).tolist(),
        "queries": [n or BUDGETS[-1] for n in broken],
        "first_hit": list(broken),
        "broken_at": list(broken),
        "expected_broken": [[n is not None and n <= mark for mark in BUDGETS] for n in broken],
        "wrong_answers": [[20 * (n is not None and n <= mark) for mark in BUDGETS] for n in broken],
        **{name: [value] * shard.count for name, value in same.items()},
    }


if __name__ == "__main__":
    main()
