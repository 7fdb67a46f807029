"""Pictures of results, as SVG whose bytes depend on the numbers alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmark.files import place
from benchmark.matching import Calibration

STYLE: Any = {"svg.hashsalt": "querybench", "svg.fonttype": "none", "font.size": 9.0}


def draw_strengths(found: Sequence[Calibration], path: Path) -> None:
    """Draw what each strength of each defense costs, and where the drops asked for are met.

    Args:
        found: Calibrations; those without a strength are left out.
        path: The SVG file.

    Raises:
        StoreError: If it cannot be written.
    """
    curves = [one for one in found if one.points]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for one in curves:
            points = [point for point in one.points if point.strength > 0]
            strengths = [point.strength for point in points]
            drops = [100 * point.drop for point in points]
            errors = [100 * point.error for point in points]
            name = f"{one.defense} ({one.defense.knob})"
            axes.errorbar(strengths, drops, errors, marker=".", lw=1, capsize=2, label=name)
        targets = sorted({100 * match.target for one in curves for match in one.matches})
        for target in targets:
            axes.axhline(target, color="0.6", lw=0.8, ls=":")
        if targets:  # what costs far more than was asked would flatten the rest
            axes.set_ylim(-targets[0], min(3 * targets[-1], axes.get_ylim()[1]))
        axes.set_xscale("log")
        axes.set_xlabel("strength")
        axes.set_ylabel("clean accuracy lost, points")
        if curves:
            axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    place(path, buffer.getvalue())
