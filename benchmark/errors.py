"""Errors that are the user's or an entry's fault: one clear line each, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN = 25  # names that a message lists


class BenchError(Exception):
    """A mistake in the input; the command line prints its message without a traceback."""


class RegistryError(BenchError, LookupError):
    """An unknown, doubled or malformed registry entry."""


class SpecError(BenchError, ValueError):
    """A malformed request: bad parameter, bad value, impossible combination."""


class QueryError(BenchError, ValueError):
    """An attack asked something its threat model forbids."""


class AccessError(BenchError, PermissionError):
    """An attack read something its access level does not show."""


class ForeignError(BenchError, RuntimeError):
    """An attack of another library failed by an error of its own."""


class VictimError(BenchError, ValueError):
    """A victim or defense answered with the wrong shape, or with NaN."""


class DataError(BenchError, ValueError):
    """A data set or checkpoint is missing, damaged or not what it should be."""


class StoreError(BenchError, OSError):
    """Results cannot be read or written."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Name the nearest matches of a misspelt name, or list what is allowed.

    Args:
        name: The name that was not found.
        known: All allowed names.

    Returns:
        A sentence starting with "Did you mean" or "Allowed".
    """
    allowed = sorted(known)
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.6)
    if close:
        return f"Did you mean: {', '.join(close)}?"
    more = f" and {len(allowed) - _SHOWN} more" if len(allowed) > _SHOWN else ""
    return f"Allowed: {', '.join(allowed[:_SHOWN]) or 'none'}{more}."
