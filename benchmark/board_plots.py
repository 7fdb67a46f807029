"""Pictures of leaderboards, as SVG whose bytes depend on the numbers alone."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from benchmark.measured import WORST_CASE
from benchmark.plots import STYLE
from benchmark.stack import undefended
from benchmark.standings import Board, Row, Setting, Standing

MARK = "bench leaderboard"

# Okabe and Ito's colours, told apart by colour-blind readers; black is the bare victim's.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_LINES, _MARKERS = ("-", "--", "-."), "osD^vP*X<>"
_ACROSS = 4  # panels in a row
_NAME, _LINE = 0.085, 0.19  # width of a letter, height of a line, inches

Look = dict[str, Any]

Drawn = TypeVar("Drawn", bound=Callable[..., bytes | None])


def styled(draw: Drawn) -> Drawn:
    """Draw in our style, whatever a user's own is."""
    return style.context(["default", STYLE])(draw)


@styled
def curves(setting: Setting, board: Board) -> bytes:
    """Draw robust accuracy against queries: a panel for each attack, a line for each defense."""
    attacks = [*([WORST_CASE] if len(board.attacks) > 1 else []), *board.attacks]
    looks = looks_of([one.defense for one in board.standings])
    across = min(_ACROSS, len(attacks))
    down = math.ceil(len(attacks) / across)
    figure = Figure(figsize=(max(2.4 * across, 4.2) + 0.4, 2.1 * down + 0.6), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for place, (axes, attack) in enumerate(itertools.zip_longest(grid, attacks)):
        if attack is None:
            axes.set_visible(False)
            continue
        for one in board.standings:
            rows = one.worst if attack == WORST_CASE else one.points.get(attack, [])
            shares = [100 * row.robust_accuracy for row in rows]
            axes.plot([row.budget for row in rows], shares, **looks[one.defense])
        axes.set_title(attack, fontsize="medium")
        plain_grid(axes)
        axes.tick_params(labelbottom=place + across >= len(attacks))  # nothing below it
    grid[0].set_ylim(-3, 103)
    query_axis(grid[0], setting.budgets)
    figure.supxlabel("queries an image", fontsize="medium")
    figure.supylabel("robust accuracy, %", fontsize="medium")
    legend(figure, looks)
    return svg(figure)


def query_axis(axes: Any, budgets: Sequence[int]) -> None:
    """Mark checkpoints, apart by their ratios."""
    if len(budgets) > 1:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(budgets))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def plain_grid(axes: Any) -> None:
    """Put a faint grid behind everything."""
    axes.grid(visible=True, color="0.9", lw=0.6)
    axes.set_axisbelow(True)


@styled
def trade_off(setting: Setting, families: Mapping[str, str]) -> bytes | None:
    """Draw robust accuracy in the worst case against the clean accuracy lost.

    Args:
        setting: All its boards share the picture.
        families: For each defense at a matched strength the defense as it was asked for: its
            strengths are joined by a line.

    Returns:
        The picture; None if nothing is known of drops.
    """
    known = {one.defense: one for board in setting.boards for one in board.standings if one.worst}
    known = {name: one for name, one in known.items() if pd.notna(one.last.drop)}
    if not known:
        return None
    groups: dict[str, list[Standing]] = {}
    for name, one in sorted(known.items()):
        groups.setdefault(families.get(name, name), []).append(one)
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    looks = looks_of(list(groups))
    for name, look in looks.items():
        rows = sorted((one.last for one in groups[name]), key=lambda row: float(row.drop))
        _with_errors(axes, rows, look)
    axes.set_xlabel("clean accuracy lost, points (bars: standard error)")
    axes.set_ylabel(f"robust at {setting.budgets[-1]} queries, % (bars: 95 %)")
    plain_grid(axes)
    axes.set_ylim(-3, 103)
    legend(figure, looks)
    return svg(figure)


def _with_errors(axes: Any, rows: Sequence[Row], look: Look) -> None:
    share = np.array([100 * row.robust_accuracy for row in rows])
    low = share - np.array([100 * row.robust_accuracy_low for row in rows])
    high = np.array([100 * row.robust_accuracy_high for row in rows]) - share
    error = [0.0 if pd.isna(row.drop_error) else 100 * row.drop_error for row in rows]
    bars = {"yerr": np.maximum(0.0, [low, high]), "xerr": error, "elinewidth": 0.8, "capsize": 2}
    axes.errorbar([100 * row.drop for row in rows], share, **bars, **look)


@styled
def heat_map(setting: Setting, board: Board) -> bytes:
    """Draw robust accuracy at the last budget, attacks by defenses; what is missing stays white."""
    attacks = [*board.attacks, *([WORST_CASE] if len(board.attacks) > 1 else [])]
    names = [one.defense for one in board.standings]
    shares = np.array([[_share(one, attack) for one in board.standings] for attack in attacks])
    beside, below = (_NAME * max(map(len, some)) for some in (attacks, names))
    size = (max(0.62 * len(names) + beside + 1.3, 3.2), 0.34 * len(attacks) + below + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "black" if share > 50 else "white"
        text = "" if np.isnan(share) else f"{share:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(attacks)), attacks)
    figure.colorbar(image, label=f"robust at {setting.budgets[-1]}, %")
    return svg(figure)


def _share(one: Standing, attack: str) -> float:
    rows = one.worst if attack == WORST_CASE else one.points.get(attack, [])
    return 100 * float(rows[-1].robust_accuracy) if rows else math.nan


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """A line for each defense that differs from the others in more than colour."""
    found: dict[str, Look] = {}
    bare = str(undefended())
    for place, name in enumerate(sorted(set(names) - {bare})):
        turn, colour = divmod(place, len(_COLOURS))
        found[name] = {
            "color": _COLOURS[colour],
            "ls": _LINES[turn % len(_LINES)],
            "marker": _MARKERS[place % len(_MARKERS)],
        }
    if bare in names:
        found[bare] = {"color": "black", "ls": ":", "marker": "x"}
    return {name: {**look, "lw": 1.2, "ms": 4.5, "label": name} for name, look in found.items()}


def legend(figure: Figure, looks: Mapping[str, Look]) -> None:
    """Put the legend above the panels, and make room for it."""
    handles = [Line2D([], [], **look) for look in looks.values()]
    letters = max(map(len, looks)) + 6
    columns = max(1, min(len(looks), int(figure.get_figwidth() / (_NAME * letters))))
    figure.set_figheight(figure.get_figheight() + _LINE * math.ceil(len(looks) / columns))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)


def svg(figure: Figure) -> bytes:
    """Write a picture; equal pictures have equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": MARK})
    return buffer.getvalue()
