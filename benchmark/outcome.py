"""What the file of a finished piece of work says: rows, costs, provenance."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from benchmark.matching import Calibration
from benchmark.measuring import Subject
from benchmark.protocol import Protocol
from benchmark.provenance import provenance
from benchmark.scores import Scores
from benchmark.spec import Cell, Look, Part, digest
from benchmark.store import CALIBRATIONS, Store
from benchmark.tasks.attack import ShardResult
from benchmark.types import Aim, Norm, Probes, Threat


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
        "parameters": _settings(parts),
        "seed": cell.seed,
        "images": cell.images,
        "run_to_budget": protocol.run_to_budget,
    }


def cell_of(columns: Mapping[str, Any]) -> Cell:
    """Make the cell again whose columns these are, as far as they are in its key.

    Raises:
        KeyError: If a column is missing.
        ValueError: If one does not say what it ought to.
    """
    records = json.loads(columns["parameters"])
    parts = [Part("", columns[n], records[n]) for n in ("dataset", "model", "defense", "attack")]
    budgets = tuple(int(mark) for mark in columns["budgets"].split("+"))
    said = dict(word.split("=", 1) for word in columns["protocol"].split())
    threat = Threat(Norm(columns["norm"]), columns["eps"], budgets[-1], Aim(columns["aim"]))
    scores, probes = Scores.parse(said["scores"]), Probes(said["probes"])
    votes, draws, whole = int(said["votes"]), int(said["draws"]), columns["run_to_budget"]
    protocol = Protocol(budgets, scores, probes, votes, draws, whole)
    more = columns["images"], columns["seed"], said["device"]
    dataset, model, defense, attack = parts
    return Cell(dataset, model, defense, attack, threat, protocol, *more)


def look_content(look: Look, result: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Turn the result of a look into what its file holds."""
    parts = {"dataset": look.dataset, "model": look.model, "defense": look.defense}
    return {
        "row": {
            "look": look.key,
            **{name: part.name for name, part in parts.items()},
            "dataset_fingerprint": look.dataset.record["fingerprint"],
            "model_fingerprint": look.model.record["fingerprint"],
            "settings": _settings(parts),
            "seed": look.seed,
            "images": look.images,
            **result["measured"],
            **provenance(device),
        },
        "timing": result["timing"],
    }


def keep(calibration: Calibration, subject: Subject, store: Store) -> None:
    """Store what strengths were found, so that tables can say what they were found for."""
    if not calibration.matches:
        return
    dataset, model = subject.dataset, subject.model
    names = {
        "company": subject.company,
        "dataset": dataset.record,
        "model": model.record,
        "defense": calibration.defense.record(),
        "split": str(calibration.split),
        "images": calibration.images,
        "targets": [match.target for match in calibration.matches],
    }
    rows = [
        {
            "dataset": dataset.name,
            "model": model.name,
            "defense": str(calibration.defense),
            "target": round(100 * match.target, 6),
            "knob": calibration.defense.knob,
            "strength": match.point.strength,
            "matched": str(calibration.defense.at(match.point.strength)),
            "saturated": match.saturated,
            "drop": match.point.drop,
            "drop_error": match.point.error,
            "bend": match.bend,
            "split": str(calibration.split),
            "images": calibration.images,
            "draws": calibration.draws,
        }
        for match in calibration.matches
    ]
    points = [astuple(point) for point in calibration.points]
    store.write(digest(names), {"rows": rows, "points": points}, CALIBRATIONS)


def _settings(parts: Mapping[str, Part]) -> str:
    records = {name: part.record for name, part in parts.items()}
    return json.dumps(records, sort_keys=True, separators=(",", ":"))
