"""Leaderboards of stealing: a page for each reference folder that has a `steals.csv`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmark.board_plots import legend, looks_of, plain_grid, query_axis, styled, svg
from benchmark.board_tables import table
from benchmark.stack import undefended
from benchmark.stealing.display import lines_of, pools_of
from benchmark.stealing.spec import Method
from benchmark.stealing.tables import NAME, read_steals

_ALIKE = ["dataset", "model", "eps", "images"]
_ENSEMBLE = "+"  # in the seeds of clones that are attacked together
_LEGEND = """\
Accuracy in %; of several seeds the mean ± standard deviation. Clone: share of right answers of the
stolen copy. Agree: share of images on which it and the defended victim agree. Then what is left of
the victim's accuracy, behind its defense, by its mean answer (S3): on images moved by random signs,
and on images made on a clone by PGD and MI-FGSM, or on the clones of all seeds together. Lines of
reference: `noise` follows no gradient, `surrogate` was trained on the victim's own data, and
`white-box` follows the victim's own gradient. Uninformative: without a defense this attack's clone
is too poor, or its images do not beat noise, so the line says nothing of the defense. A number of
queries with … is on the way: the attack's schedule was stretched to the last one.
`docs/stealing.md` says what it all means.
"""


def steal_pages(root: Path, head: str) -> Iterator[tuple[str, dict[str, bytes], list[list[str]]]]:
    """Make the page of each folder below `root`, its pictures, and its rows of the index.

    Raises:
        StoreError: If a table cannot be read.
    """
    for path in sorted(root.rglob(NAME)):
        name = path.parent.relative_to(root).as_posix()
        parts, files, index = [f"{head}# {name}\n\n{_LEGEND}"], {}, []
        found = read_steals(path)
        for number, (_, rows) in enumerate(found.groupby(_ALIKE, sort=True), 1):
            picture = f"{name.rsplit('/', 1)[-1]}-{number}-steals.svg"
            first = rows.iloc[0]
            title = f"{first['model']} on {first['dataset']}, linf {first['eps']:.4g}"
            lines = lines_of(_ordered(rows))
            text = table([list(line.values()) for line in lines], list(lines[0]))
            caption = "Robust accuracy and clone accuracy against queries"
            parts.append(f"## {title}\n\n{first['images']} images.\n\n{text}\n")
            parts.append(f"![{caption}]({picture})\n")
            files[f"{name.removesuffix(name.rsplit('/', 1)[-1])}{picture}"] = curves(rows)
            counts = [rows[column].nunique() for column in ("defense", "attack")]
            index.append([f"[{name}]({name}.md)", title, str(first["images"]), *map(str, counts)])
        yield name, {f"{name}.md": "\n".join(parts).encode(), **files}, index


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """The bare victim first; of each defense the lines of reference first."""
    bare, asks = rows["defense"] == str(undefended()), rows["queries"] > 0
    keys = rows.assign(_defended=~bare, _asks=asks)
    return keys.sort_values(["_defended", "defense", "_asks"], kind="stable")


@styled
def curves(rows: pd.DataFrame) -> bytes:
    """Draw robust accuracy (PGD) above clone accuracy against queries, by attack and pool."""
    stolen = rows[(rows["queries"] > 0) & (rows["method"] == Method.PGD)]
    stolen = stolen[~stolen["seeds"].str.contains(_ENSEMBLE, regex=False)]
    stolen = stolen.assign(pool=pools_of(stolen))
    if stolen["scores"].nunique() > 1:
        stolen = stolen.assign(pool=stolen["pool"] + ", " + stolen["scores"])
    groups = list(stolen.groupby(["attack", "pool"], sort=True))
    looks = looks_of(list(dict.fromkeys(stolen["defense"])))
    across = max(1, len(groups))
    figure = Figure(figsize=(max(2.4 * across, 4.2) + 0.4, 4.8), layout="constrained")
    grid = figure.subplots(2, across, sharex="col", sharey="row", squeeze=False)
    for column, ((attack, pool), group) in enumerate(groups):
        grid[0, column].set_title(f"{attack}\n{pool}", fontsize="medium")
        for row, share in enumerate(("robust_accuracy", "clone_accuracy")):
            for defense, mine in group.groupby("defense"):
                means = 100 * mine.groupby("budget")[share].mean()
                grid[row, column].plot(means.index, means, **looks[str(defense)])
            plain_grid(grid[row, column])
            grid[row, column].set_ylim(-3, 103)
        query_axis(grid[0, column], sorted(group["budget"].unique()))
    grid[0, 0].set_ylabel("robust (PGD), %")
    grid[1, 0].set_ylabel("clone accuracy, %")
    figure.supxlabel("queries", fontsize="medium")
    legend(figure, looks)
    return svg(figure)
