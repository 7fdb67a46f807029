"""What the files of thefts and transfers hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmark.catalogue import STEALERS
from benchmark.provenance import provenance
from benchmark.spec import Part
from benchmark.stack import undefended
from benchmark.stealing.spec import Theft, Transfer


def theft_content(theft: Theft, result: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Turn the result of a theft into what its file holds."""
    return {
        "columns": {
            "pool": theft.pool.name,
            "pool_images": theft.pool_images,
            "scores": str(theft.scores),
            "seed": theft.seed,
        },
        "last": theft.budgets[-1],
        "planned": STEALERS.choose(theft.attack.text).entry.facts.planned,
        "parameters": {"attack": theft.attack.record, "pool": theft.pool.record},
        "provenance": provenance(device),
        **result,
    }


def transfer_content(transfer: Transfer, result: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Turn the result of a transfer into what its file holds."""
    parts: dict[str, Part] = {
        "dataset": transfer.dataset,
        "model": transfer.model,
        "defense": transfer.defense,
    }
    return {
        "columns": {
            **{name: part.name for name, part in parts.items()},
            "attack": transfer.attack.name,
            "seeds": "+".join(map(str, transfer.seeds)),
            "budget": transfer.budget,
            "eps": transfer.eps,
            "images": transfer.images,
        },
        "origin": str(transfer.origin),
        "thefts": list(transfer.thefts),
        "parameters": {name: part.record for name, part in parts.items()},
        "undefended": transfer.defense.name == str(undefended()),
        "provenance": provenance(device),
        **result,
    }


def written(parameters: Mapping[str, Any]) -> str:
    """Write parameters as tables hold them."""
    return json.dumps(parameters, sort_keys=True, separators=(",", ":"))
