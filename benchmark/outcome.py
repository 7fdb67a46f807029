"""What a shard file says besides its rows: the cell, the costs, the provenance."""

from __future__ import annotations

import datetime
import json
from typing import Any

from benchmark.provenance import provenance
from benchmark.spec import Cell
from benchmark.tasks.attack import ShardResult


def content(result: ShardResult, device: str, started: datetime.datetime) -> dict[str, Any]:
    """Turn the result of a shard into what its file holds."""
    shard = result.shard
    asked = sum(count for name, count in result.costs.items() if name.endswith("_queries"))
    return {
        "cell": cell_columns(shard.cell),
        "first": shard.first,
        "count": shard.count,
        "costs": result.costs,
        "provenance": provenance(device),
        "timing": {
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(result.seconds, 3),
            "queries_per_second": round(asked / result.seconds, 1),
        },
        "images": result.images,
    }


def cell_columns(cell: Cell) -> dict[str, Any]:
    """Columns of a cell as `ShardRow` and `CellRow` name them."""
    protocol = cell.protocol
    parts = {
        "dataset": cell.dataset,
        "model": cell.model,
        "defense": cell.defense,
        "attack": cell.attack,
    }
    records = {name: part.record for name, part in parts.items()}
    return {
        "cell": cell.key,
        **{name: part.name for name, part in parts.items()},
        "dataset_fingerprint": cell.dataset.record["fingerprint"],
        "model_fingerprint": cell.model.record["fingerprint"],
        "norm": str(cell.threat.norm),
        "eps": cell.threat.eps,
        "aim": str(cell.threat.aim),
        "budgets": "+".join(str(mark) for mark in protocol.budgets),
        "protocol": f"scores={protocol.scores} probes={protocol.probes} "
        f"votes={protocol.votes} draws={protocol.draws} device={cell.device}",
        "parameters": json.dumps(records, sort_keys=True, separators=(",", ":")),
        "seed": cell.seed,
        "images": cell.images,
        "run_to_budget": protocol.run_to_budget,
    }
