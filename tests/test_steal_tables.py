"""From files of thefts and transfers to rows of `steals.csv`, on files made by hand."""

from __future__ import annotations

from benchmark.about import About
from benchmark.stealing.tables import steal_table


def theft(key="t", last=100, **columns):
    """What the file of a theft holds; its clone is right on every second image."""
    quality = dict.fromkeys(("agreement", "agreement_asked"), 0.5)
    quality |= dict.fromkeys(("divergence", "divergence_asked"), 0.1)
    return {
        "key": key,
        "columns": {"pool": "mnist", "pool_images": None, "scores": "label", **columns},
        "last": last,
        "planned": False,
        "parameters": {"attack": {"name": "knockoff"}, "pool": {"name": "mnist"}},
        "rows": [{"budget": 100, "queries": 100, "clone_accuracy": 0.5, **quality}],
    }


def transfer(clean, rows, thefts=("t",), defense="none", **columns):
    """What the file of a transfer holds.

    Args:
        clean: Which clean images are read right.
        rows: Which images of each method are.
        thefts: Keys of thefts.
        defense: Defense.
        **columns: Columns that differ from the usual ones.
    """
    usual = {
        "dataset": "mnist", "model": "cnn", "defense": defense, "attack": "knockoff",
        "seeds": "0", "budget": 100, "eps": 0.1, "images": len(clean),
    }  # fmt: skip
    rows = {"clean": clean, **rows}
    return {
        "key": "-".join((defense, *thefts)) or "noise",
        "columns": {**usual, **columns},
        "origin": "clones" if thefts else "noise",
        "thefts": list(thefts),
        "parameters": {"defense": {"name": defense}},
        "undefended": defense == "none",
        "provenance": {"device": "cpu", "commit": "", "dirty": False, "versions": ""},
        "victim_accuracy": 1.0,
        "rows": [{"method": m, "single": 0.5, "right": right} for m, right in rows.items()],
    }


def made(transfers, thefts):
    return steal_table(transfers, {one["key"]: one for one in thefts}, About([], []))


def test_an_image_misread_when_clean_counts_as_wrong():
    one = transfer([False, True, True, True], {"pgd": [True, True, False, False]})
    row = made([one], [theft()]).iloc[0]
    assert (row["clean_accuracy"], row["robust_accuracy"]) == (0.75, 0.25)
    assert row["robust_accuracy_low"] < 0.25 < row["robust_accuracy_high"]


def test_a_line_of_reference_agrees_with_the_victim_it_was_compared_with_alone():
    rows = {"pgd": [True, False]}
    both = [
        transfer([True] * 2, rows, defense=name, attack="surrogate", budget=0)
        for name in ("none", "rnd")
    ]
    table = made(both, [{**theft(), "rows": [{**theft()["rows"][0], "budget": 0, "queries": 0}]}])
    found = table.set_index("defense")
    assert set(found["clone_accuracy"]) == {0.5}
    assert found.loc["none", "agreement"] == 0.5 and found.loc["none", "divergence"] == 0.1
    assert found.loc["rnd"][["agreement", "divergence", "agreement_asked"]].isna().all()


def test_a_verdict_is_by_the_same_schedule_and_settings_without_a_defense():
    """Of one name, one on the way to 900 queries is poor; so is one of an earlier version."""
    good, poor = [False] * 20, [True] * 20
    noise = transfer([True] * 20, {"sign-noise": poor}, thefts=(), attack="noise", budget=0)
    thefts = [
        {**theft(key), "last": last, "planned": True,
         "parameters": {"attack": {"name": "maze", "version": version}}}
        for key, last, version in (("a", 100, 2), ("b", 900, 2), ("c", 100, 1))
    ]  # fmt: skip
    for one in thefts:
        one["rows"][0]["clone_accuracy"] = 0.9 if one["key"] == "a" else 0.7
    both = [
        transfer([True] * 20, {"pgd": good if key == "a" else poor}, (key,), defense)
        for defense in ("none", "rnd")
        for key in "abc"
    ]
    for order in (both, both[::-1]):
        table = made([noise, *order], thefts).dropna(subset="thefts")
        said = table.set_index("thefts")["verdict"]
        assert set(said["a"]) == {"informative"}
        assert set(said["b"]) == set(said["c"]) == {"uninformative"}


def test_noise_is_that_of_the_same_weights():
    """A victim of the same name with other weights falls to noise alone."""
    made_on = [transfer([True] * 20, {"pgd": [False] * 20}) for _ in range(2)]
    noises = [
        transfer([True] * 20, {"sign-noise": [right] * 20}, (), attack="noise", budget=0)
        for right in (True, False)
    ]
    for weights, one in enumerate((*made_on, *noises)):
        one["parameters"] = {**one["parameters"], "model": {"fingerprint": weights % 2}}
        one["key"] += str(weights)
    thefts = [theft()]
    thefts[0]["rows"][0]["clone_accuracy"] = 0.9
    for order in (noises, noises[::-1]):
        table = made([*made_on, *order], thefts).dropna(subset="thefts").set_index("transfer")
        assert table["verdict"].tolist() == ["informative", "uninformative"]
