"""The conformance checks of entries: ours, and those of strangers (`bench check`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmark.config import Config
from benchmark.contract import attack, dataset, defense, model, stealer, strength
from benchmark.contract.toy import Broken, NotHere
from benchmark.entry import Choice, Entry
from benchmark.errors import BenchError
from benchmark.facts import StealerFacts

Check = Callable[[Choice[Any], Config], None]


@dataclass(frozen=True)
class Verdict:
    """Outcome of one check.

    Attributes:
        check: What was checked, as a sentence.
        status: "ok", "failed" or "skipped".
        detail: What was found, or why the check was skipped.
    """

    check: str
    status: str
    detail: str = ""


def checks(kind: str) -> dict[str, Check]:
    """Checks of a kind of entry, by the sentence that each establishes."""
    modules = {
        "attack": (attack, strength),
        "defense": (defense,),
        "model": (model,),
        "dataset": (dataset,),
        "stealing attack": (stealer,),
    }
    return {
        (function.__doc__ or name).partition("\n")[0].rstrip("."): function
        for module in modules[kind]
        for name, function in vars(module).items()
        if name.startswith("check_")
    }


def variants(entry: Entry[Any]) -> list[str]:
    """Parameters under which an entry is checked, as they are written after its name.

    A stealing attack that names quick ones is checked under these alone.
    """
    examples = list(getattr(entry.facts, "examples", ()))
    quick = isinstance(entry.facts, StealerFacts) and examples
    return examples if quick else ["", *examples]


def verify(choice: Choice[Any], config: Config | None = None) -> list[Verdict]:
    """Run every check of an entry.

    Args:
        choice: The entry with the parameters to check it under.
        config: Where data and weights are, for models and data sets.
    """
    table = checks(choice.entry.kind)
    return [judge(name, check, choice, config or Config()) for name, check in table.items()]


def judge(name: str, check: Check, choice: Choice[Any], config: Config) -> Verdict:
    """Run one check."""
    if choice.entry.packages:
        return Verdict(name, "skipped", "code of another library, which keeps rules of its own")
    try:
        check(choice, config)
    except NotHere as reason:
        return Verdict(name, "skipped", str(reason))
    except (Broken, BenchError) as error:
        return Verdict(name, "failed", str(error))
    except Exception as error:  # noqa: BLE001 - the entry may fail in any way
        return Verdict(name, "failed", f"{type(error).__name__}: {error}")
    return Verdict(name, "ok")
