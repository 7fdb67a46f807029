"""What a run shows: a progress bar on a terminal, a few lines in a pipe, a final table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from tabulate import tabulate

from benchmark.matching import Calibration

_EVERY = 15.0  # seconds between lines in a pipe


class Progress:
    """Shows images done, queries per second and time left, on standard error.

    Args:
        images: Images to do in this run, over all cells.
        console: Where to show it.
    """

    def __init__(self, images: int, console: Console) -> None:
        self._images, self._console = images, console
        self._done, self._queries, self._shown = 0, 0, time.monotonic()
        self._start = self._shown
        columns = (
            TextColumn("attacking"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("attack", total=images, rate="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, images: int, queries: int) -> None:
        """Count a finished shard."""
        self._done += images
        self._queries += queries
        now = time.monotonic()
        rate = self._queries / max(now - self._start, 1e-9)
        self._bar.update(self._task, advance=images, rate=f"{rate:,.0f} queries/s")
        if self._done and not self._console.is_terminal and now - self._shown > _EVERY:
            self._shown = now
            left = (now - self._start) * (self._images / self._done - 1)
            self._console.print(
                f"{self._done}/{self._images} images, {rate:,.0f} queries/s, {left:.0f} s left"
            )


def told_of(console: Console, doing: str) -> Callable[[str, float], None]:
    """Make what is told of long work: a line when it begins, and now and then on the way."""
    shown: dict[str, float] = {}

    def told(name: str, done: float) -> None:
        now = time.monotonic()
        if name not in shown or now - shown[name] > _EVERY or done >= 1.0:
            shown[name] = now
            line = f"{doing} {name}: {100 * done:.0f} %"
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    return told


def heading(cells: pd.DataFrame) -> str:
    """Say in a line what the cells of a request have in common."""
    first = cells.iloc[0]
    radii = ", ".join(f"{eps:.4g}" for eps in cells["eps"].unique())
    seed = f", seed {first['seed']}" if first["seed"] else ""
    return (
        f"{first['model']} on {first['dataset']}, {first['norm']} eps {radii}, {first['aim']}, "
        f"{first['images']} images{seed}; accuracy in %, robust = verified (S2)"
    )


def summary(cells: pd.DataFrame) -> str:
    """Lay out the cells of a run as a table of percentages.

    Args:
        cells: Rows of `cells.csv`.

    Returns:
        One line for each defense and attack; robust accuracy (S2) at every budget, S1 and S3
        at the last.
    """
    rows = []
    several = cells["eps"].nunique() > 1
    matched = cells["matched_drop"].notna().any()
    for _, group in cells.groupby(["defense", "attack", "eps"], sort=False):
        last = group.iloc[-1]
        row = {"defense": last["defense"], "attack": last["attack"]}
        if several:
            row["eps"] = f"{last['eps']:.4g}"
        row["clean"] = _percent(last["clean_accuracy"])
        if matched:
            row["drop"] = _drop(last["drop"], last["drop_error"])
            row["asked"] = "as written" if pd.isna(last["matched_drop"]) else last["matched_drop"]
        for _, point in group.iterrows():
            row[f"robust@{point['budget']}"] = _percent(point["robust_accuracy"])
        low, high = last["robust_accuracy_low"], last["robust_accuracy_high"]
        row["95 %"] = f"{_percent(low)}-{_percent(high)}"
        row["first hit"] = _percent(last["robust_accuracy_first_hit"])
        row["expected"] = _percent(last["robust_accuracy_expected"])
        median = last["queries_median_censored"]
        row["median queries"] = "" if pd.isna(median) else f"{median:g}"
        if cells["distance_median"].notna().any():
            away = last["distance_median"]
            row["median distance"] = "" if pd.isna(away) else f"{away:.4f}"
        rows.append(row)
    return tabulate(rows, headers="keys", disable_numparse=True, stralign="right")


def strengths(found: Sequence[Calibration]) -> str:
    """Lay out what strength each drop needs; a defense without one has a line of its own."""
    rows = []
    for one in found:
        name, looked = str(one.defense), f"{one.images} of {one.split}"
        if not one.matches:
            why = "strength written out" if one.defense.knob else "has no strength"
            rows.append([name, "", why, "", "", looked])
        for match in one.matches:
            point = match.point
            strength = f"{one.defense.knob}={point.strength:g}"
            note = "saturated" if match.saturated else ""
            drop = _drop(point.drop, point.error)
            rows.append([name, f"{100 * match.target:g}", strength, drop, note, looked])
    headers = ["defense", "asked", "strength", "drop", "", "looked at"]
    return tabulate(rows, headers, disable_numparse=True, stralign="right")


def curves(found: Sequence[Calibration]) -> str:
    """Lay out what every strength that was looked at costs."""
    rows = [
        [str(one.defense), f"{one.defense.knob}={p.strength:g}", _drop(p.drop, p.error)]
        for one in found
        for p in one.points
    ]
    return tabulate(rows, ["defense", "strength", "drop"], disable_numparse=True, stralign="right")


def listing(rows: Sequence[dict[str, str]]) -> str:
    """Lay out names and one-line descriptions."""
    return tabulate(rows, headers="keys", tablefmt="simple")


def _drop(drop: float, error: float) -> str:
    return "" if pd.isna(drop) else f"{100 * drop:.2f} ± {100 * error:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
