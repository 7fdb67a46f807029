"""Our attacks beside other libraries' own, paired: `python tests/bench/parity.py FOLDER`.

FOLDER holds a run of both against an undefended victim, for example

    bench run --attacks square,art:SquareAttack,torchattacks:Square --defenses none \
        --dataset cifar10 --model resnet20 --images 200 --queries 1000 --out FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from benchmark.statistics import mcnemar

OURS = {
    "square": ("art:SquareAttack", "torchattacks:Square"),
    "simba": ("art:SimBA",),
    "hopskipjump": ("art:HopSkipJump", "foolbox:HopSkipJumpAttack"),
    "nes": ("foolbox:NES",),
    "boundary": ("art:BoundaryAttack", "foolbox:BoundaryAttack"),
    "signopt": ("art:SignOPTAttack",),
}


def right(images: pd.DataFrame, budget: int) -> pd.Series:
    """Images that stay right after so many queries, by their position in the data set."""
    stays = images["broken_at"].isna() | (images["broken_at"] > budget)
    return (images["attacked"] & stays).set_axis(images["image"]).sort_index()


def compare(folder: Path) -> pd.DataFrame:
    """A row for each pair and budget: robust accuracies, images only one breaks, p value."""
    shards = pd.read_csv(folder / "shards.csv")
    images = pd.read_parquet(folder / "images.parquet").merge(shards[["shard", "cell"]])
    rows = []
    bare = shards[shards["defense"] == "none"]
    for (norm, eps, budgets), some in bare.groupby(["norm", "eps", "budgets"]):
        cells = some.drop_duplicates("attack").set_index("attack")["cell"]
        for first, second in _pairs(cells.index):
            one, two = (images[images["cell"] == cells[name]] for name in (first, second))
            for budget in map(int, budgets.split("+")):
                tested = _tested(right(one, budget), right(two, budget))
                rows.append([norm, f"{eps:.4g}", first, second, budget, *tested])
    names = ["norm", "eps", "ours", "theirs", "queries", "ours %", "theirs %"]
    return pd.DataFrame(rows, columns=[*names, "only ours breaks", "only theirs breaks", "p"])


def _pairs(attacks: pd.Index) -> list[tuple[str, str]]:
    """Ours and theirs among the attacks that were run, whatever their parameters."""
    entry = {name: name.partition("[")[0].partition("@")[0] for name in attacks}
    return [(a, b) for a in attacks for b in attacks if entry[b] in OURS.get(entry[a], ())]


def _tested(ours: pd.Series, theirs: pd.Series) -> list[object]:
    first, second = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    shares = [f"{100 * float(one.mean()):.1f}" for one in (ours, theirs)]
    return [*shares, first, second, f"{mcnemar(np.array([first]), np.array([second]))[0]:.2g}"]


if __name__ == "__main__":
    found = compare(Path(sys.argv[1]))
    print(tabulate(found, headers="keys", showindex=False, disable_numparse=True))
