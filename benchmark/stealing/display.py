"""What `bench steal` prints."""

from __future__ import annotations

import pandas as pd
from tabulate import tabulate

from benchmark.stealing.spec import Method

_SHOWN = (Method.SIGN_NOISE, Method.PGD, Method.MI_FGSM)
_GROUP = ["pool", "scores", "defense", "attack", "budget", "on_the_way"]
_VARIED = ("pool", "scores")  # shown where there are several


def heading(rows: pd.DataFrame) -> str:
    """Say in a line what the rows of a request have in common."""
    first = rows.iloc[0]
    return (
        f"{first['model']} on {first['dataset']}, linf eps {first['eps']:.4g}, {first['images']} "
        "images; accuracy in %, of several seeds mean ± standard deviation"
    )


def summary(rows: pd.DataFrame) -> str:
    """Lay out the rows of a run as a table of percentages; see `lines_of`."""
    return tabulate(lines_of(rows), headers="keys", disable_numparse=True, stralign="right")


def lines_of(rows: pd.DataFrame) -> list[dict[str, str]]:
    """Put the seeds of a run together.

    Args:
        rows: Rows of `steals.csv`.

    Returns:
        One line for each pool, kind of scores, defense, attack and checkpoint: how good the clones
        are, and what is left of the victim's accuracy (S3) on images made on one of them, and on
        all together. What says nothing in any line is left out.
    """
    rows = rows.assign(pool=pools_of(rows), scores=rows["scores"].fillna(""))
    lines = []
    for _, group in rows.groupby(_GROUP, sort=False):
        together = group["seeds"].str.contains("+", regex=False)
        single = group[~together]
        lines.append({**_line(single), "pgd, all clones": _robust(group[together], Method.PGD)})
        lines[-1]["verdict"] = _verdict(single)
    used = [name for name in lines[0] if any(line[name] for line in lines)]
    alike = [name for name in _VARIED if len({line[name] for line in lines} - {""}) < 2]
    return [{name: line[name] for name in used if name not in alike} for line in lines]


def pools_of(rows: pd.DataFrame) -> pd.Series[str]:
    """Name the pool of each row of `steals.csv`, and how many of its images if not all."""
    taken = [
        "" if pd.isna(count) else f" ({count:.0f})" for count in rows["pool_images"].astype(float)
    ]
    return rows["pool"].fillna("") + pd.Series(taken, index=rows.index, dtype=object)


def _line(group: pd.DataFrame) -> dict[str, str]:
    first = group.iloc[0]
    drop = "" if pd.isna(first["drop"]) else f"{100 * first['drop']:.2f}"
    return {
        "defense": first["defense"],
        "drop": drop,
        "attack": first["attack"],
        "pool": first["pool"],
        "scores": first["scores"],
        "queries": f"{first['budget']}{'…' if first['on_the_way'] else ''}" * bool(first["budget"]),
        "clean": _percent(group["clean_accuracy"]),
        "clone": _percent(group["clone_accuracy"]),
        "agree": _percent(group["agreement"]),
        **{str(method): _robust(group, method) for method in _SHOWN},
    }


def _verdict(group: pd.DataFrame) -> str:
    """What the seeds say by PGD; if they differ, how many of them are informative."""
    said = group.loc[group["method"] == Method.PGD, "verdict"].dropna()
    if said.nunique() < 2:
        return "".join(said[:1])
    return f"informative in {(said == 'informative').sum()} of {len(said)}"


def _robust(group: pd.DataFrame, method: str) -> str:
    return _percent(group.loc[group["method"] == method, "robust_accuracy"])


def _percent(shares: pd.Series[float]) -> str:
    """Mean over seeds, and their standard deviation if there are several."""
    known = 100 * shares.dropna()
    if known.empty:
        return ""
    spread = f" ± {known.std():.1f}" if len(known) > 1 and known.nunique() > 1 else ""
    return f"{known.mean():.1f}{spread}"
