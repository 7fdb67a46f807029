"""What `bench steal` prints."""

from __future__ import annotations

import pandas as pd
from tabulate import tabulate

from benchmark.stealing.spec import Method

_GROUP = ["defense", "attack", "budget"]


def heading(rows: pd.DataFrame) -> str:
    """Say in a line what the rows of a request have in common."""
    first = rows.iloc[0]
    pools = " and ".join(dict.fromkeys(rows["pool"].dropna()))
    return (
        f"{first['model']} on {first['dataset']}, stolen with {pools}; linf eps "
        f"{first['eps']:.4g}, {first['images']} images; accuracy in %, of several seeds mean "
        "± standard deviation"
    )


def summary(rows: pd.DataFrame) -> str:
    """Lay out the rows of a run as a table of percentages.

    Args:
        rows: Rows of `steals.csv`.

    Returns:
        One line for each defense, attack and checkpoint: how good the clones are, and what is left
        of the victim's accuracy (S3) on images made on one of them, and on all together.
    """
    together = rows["seeds"].str.contains("+", regex=False)
    lines = []
    for (defense, attack, budget), group in rows[~together].groupby(_GROUP, sort=False):
        same = (rows[_GROUP] == (defense, attack, budget)).all(axis=1)
        line = {
            "defense": defense,
            "attack": attack,
            "queries": group["budget"].iloc[0] or "",
            "clean": _percent(group["clean_accuracy"]),
            "clone": _percent(group["clone_accuracy"]),
            "agree": _percent(group["agreement"]),
        }
        for method in (Method.SIGN_NOISE, Method.PGD, Method.MI_FGSM):
            line[str(method)] = _robust(group, method)
        line["pgd, all clones"] = _robust(rows[same & together], Method.PGD)
        verdicts = group["verdict"].dropna()
        line["verdict"] = ", ".join(dict.fromkeys(verdicts))
        lines.append(line)
    used = [name for name in lines[0] if any(line[name] for line in lines)]
    shown = [{name: line[name] for name in used} for line in lines]
    return tabulate(shown, headers="keys", disable_numparse=True, stralign="right")


def _robust(group: pd.DataFrame, method: Method) -> str:
    return _percent(group.loc[group["method"] == method, "robust_accuracy"])


def _percent(shares: pd.Series[float]) -> str:
    """Mean over seeds, and their standard deviation if there are several."""
    known = 100 * shares.dropna()
    if known.empty:
        return ""
    spread = f" ± {known.std():.1f}" if len(known) > 1 and known.nunique() > 1 else ""
    return f"{known.mean():.1f}{spread}"
