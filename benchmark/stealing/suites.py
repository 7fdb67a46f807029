"""Suites of stealing: YAML files whose task is `steal`."""

from __future__ import annotations

from typing import Any

from benchmark.stealing.request import StealRequest, make_steal


def make_steals(suite: str | None = None, **given: Any) -> list[StealRequest]:
    """Check what is wanted."""
    del suite
    return [make_steal(**given)]
