"""What a finished attack leaves of every image."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from benchmark import audit
from benchmark.data import Samples
from benchmark.oracle import Oracle
from benchmark.tally import Tally


class Seen(NamedTuple):
    """What is the same at every radius."""

    samples: Samples
    right: Tensor
    draws: int
    attacked: Tensor
    oracle: Oracle

    def spread(self, values: list[Any], default: Any) -> list[Any]:
        """Give what is known of attacked images to these, and a default to the others."""
        found = iter(values)
        return [next(found, default) if chosen else default for chosen in self.attacked.tolist()]


def columns_of(seen: Seen, tally: Tally, submitted: audit.Submitted) -> dict[str, list[Any]]:
    """Rows of all images of the shard; those not attacked have no hit and spent nothing."""
    samples, oracle, spread = seen.samples, seen.oracle, seen.spread
    targets = oracle.problem.targets
    numbers, distances = oracle.trace.lists() if oracle.trace else ([], [])
    budgets = submitted.wrong.shape[1]
    return {
        "image": samples.ids.tolist(),
        "label": samples.labels.tolist(),
        "target": spread([] if targets is None else targets.tolist(), None),
        "clean_draws": [seen.draws] * len(seen.right),
        "clean_correct": seen.right.tolist(),
        "attacked": seen.attacked.tolist(),
        "queries": spread(oracle.used.tolist(), 0),
        "first_hit": spread([n or None for n in tally.first_hit.tolist()], None),
        "broken_at": spread([n or None for n in tally.broken_at.tolist()], None),
        "distance": spread([None if math.isnan(d) else d for d in tally.reach.tolist()], None),
        "expected_broken": spread(submitted.expected_broken.tolist(), [True] * budgets),
        "wrong_answers": spread(submitted.wrong.tolist(), None),
        "trace_queries": spread(numbers, None),
        "trace_distances": spread(distances, None),
    }


def spent_by_image(
    seen: Seen, judge: audit.Judge | None, submitted: audit.Submitted
) -> dict[str, list[int]]:
    """Count the answers of each image: charged, for verification, and for audits."""
    verified = judge.asked.tolist() if judge else []
    looked = seen.spread(submitted.asked.tolist(), 0)
    return {
        "counted_queries": seen.spread(seen.oracle.used.tolist(), 0),
        "verification_queries": seen.spread(verified, 0),
        "audit_queries": [seen.draws + count for count in looked],
    }
