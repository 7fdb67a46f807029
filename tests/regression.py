"""Compare a run with committed numbers: `python tests/regression.py NEW.csv REFERENCE.csv`.

The tables are equal to the byte on one machine. Another processor may round differently, which
can move single images: up to three images of a cell may differ, anything more fails.
"""

from __future__ import annotations

import sys

import pandas as pd

NAMES = ["dataset", "model", "defense", "attack", "norm", "eps", "aim", "seed", "budget", "images"]
SHARES = [
    "clean_accuracy",
    "robust_accuracy",
    "robust_accuracy_first_hit",
    "robust_accuracy_expected",
]
MOVED = 3  # images


def compare(new: pd.DataFrame, reference: pd.DataFrame) -> list[str]:
    """Say which reported numbers moved, one line each."""
    both = reference.merge(new, on=NAMES, how="outer", suffixes=("_old", ""), indicator=True)
    lines = [
        f"{row.defense} x {row.attack} at {row.budget}: only in the "
        f"{'reference' if row['_merge'] == 'left_only' else 'new run'}"
        for _, row in both[both["_merge"] != "both"].iterrows()
    ]
    for _, row in both[both["_merge"] == "both"].iterrows():
        for name in SHARES:
            moved = abs(row[name] - row[f"{name}_old"]) * row["images"]
            if not moved <= MOVED + 1e-3:
                lines.append(
                    f"{row['defense']} x {row['attack']} at {row['budget']}: {name} was "
                    f"{row[f'{name}_old']:.4f}, is {row[name]:.4f}"
                )
    return lines


if __name__ == "__main__":
    found = compare(*(pd.read_csv(path) for path in sys.argv[1:3]))
    print("\n".join(found) or "reported numbers hold")
    sys.exit(3 if found else 0)
