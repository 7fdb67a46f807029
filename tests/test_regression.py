"""What a rerun is held against: equality on one kind of processor, tests on paired images else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from benchmark.chance import LEVEL, LIMIT, LIMIT_NEAREST
from benchmark.recorded import NAMES, Recorded
from benchmark.regression import compare

HERE = {"device": "cpu", "torch": "2.9", "cpu": "Some-1-AVX2"}
COUNT, MARKS = 100, (50, 200)


def key(attack="square", defense="rnd", **more):
    names = dict(dataset="mnist", model="cnn", defense=defense, attack=attack, norm="linf", eps=0.1)
    names |= dict(aim="untargeted", protocol="device=cpu", seed=0, images=COUNT, budgets="50+200")
    return tuple({**names, "run_to_budget": False, **more}[name] for name in NAMES)


def images(seed=0):
    """Every second image is broken, after 1, 3, 5, ... queries."""
    broken = np.where(np.arange(COUNT) % 2, np.arange(COUNT), np.nan)
    flags = [tuple(not n > mark for mark in MARKS) if n == n else (False, False) for n in broken]
    spent = np.where(np.isnan(broken), 200, broken).astype(int)
    columns = dict(label=seed, clean_correct=9, attacked=True, queries=spent, first_hit=broken)
    columns |= dict(broken_at=broken, distance=0.1, expected_broken=pd.Series(flags))
    columns["trace_queries"] = None
    return pd.DataFrame(columns, index=pd.RangeIndex(COUNT, name="image"))


def cells(share=0.5):
    shares = dict(robust_accuracy=[0.75, share], robust_accuracy_first_hit=0.5, clean_accuracy=1.0)
    more = dict(robust_accuracy_expected=0.5, queries_used=99, drop=np.nan, cell="k")
    return pd.DataFrame({**shares, **more}, index=pd.Index(MARKS, name="budget"))


def recorded(*keys, **more):
    keys = keys or (key(), key("nes"), key(defense="none"), key(attack="worst-case"))
    own = [one for one in keys if "worst-case" not in one]
    rows = {one: cells() for one in keys}
    return Recorded(rows, {one: images() for one in own}, {}, [more.get("environment", HERE)])


def elsewhere(one):
    return replace(one, environments=[{**HERE, "cpu": "Some-1-AVX512"}])


@pytest.fixture(params=["here", "elsewhere"])
def place(request):
    return {"here": lambda one: one, "elsewhere": elsewhere}[request.param]


def test_equal_runs_are_equal(place):
    verdict = compare(recorded(), place(recorded()))
    assert verdict.moved == []
    assert verdict.still in {
        "every number is equal",
        "0 of 300 images moved, no more than by rounding",
    }


def test_the_environment_chooses_how_and_is_named():
    assert "same environment" in compare(recorded(), recorded()).how
    how = compare(recorded(), elsewhere(recorded())).how
    assert "(cpu Some-1-AVX512 here, Some-1-AVX2 in the reference)" in how
    older = recorded(environment={"device": "cpu", "torch": "2.8"})
    how = compare(older, recorded()).how
    assert "torch 2.9 here, 2.8 in the reference; cpu Some-1-AVX2 here, not told" in how


def test_equality_is_asked_of_one_environment_on_a_cpu_only():
    card = recorded(environment={**HERE, "device": "Some GPU"})
    assert "on a GPU, Some GPU" in compare(card, card).how
    mixed = replace(recorded(), environments=[HERE, {**HERE, "torch": "3"}])
    assert "2 in the reference, 2 here" in compare(mixed, mixed).how


def test_a_cell_that_is_missing_or_new_is_told(place):
    before, after = recorded(key(), key("nes")), recorded(key(), key(defense="none"))
    lines = compare(before, place(after)).moved
    assert lines == ["nes x rnd: only in the reference", "square x none: only in the rerun"]


def test_nothing_in_common_is_told(place):
    lines = compare(recorded(key(seed=1)), place(recorded(key(seed=2)))).moved
    assert lines == [
        "square x rnd, seed 1: only in the reference",
        "square x rnd, seed 2: only in the rerun",
    ]


@pytest.mark.parametrize("cell", [key(), key(attack="worst-case")])
def test_the_least_number_that_moved_is_told_here(cell):
    after = recorded()
    after.cells[cell] = cells(0.49)
    (line,) = compare(recorded(), after).moved
    assert line.startswith(f"{cell[3]} x rnd: robust at 200 was 50, is 49 (-1 points); exact")


def test_robust_accuracy_is_told_first_then_other_shares_then_the_rest():
    after = recorded()
    rows = after.cells[key()]
    rows["queries_used"] = 98
    assert "queries_used at 50 was 99, is 98" in compare(recorded(), after).moved[0]
    rows["clean_accuracy"] = 0.9
    (line,) = compare(recorded(), after).moved
    assert "clean at 50 was 100, is 90 (-10 points)" in line and "queries" not in line
    rows["robust_accuracy"] = [0.75, 0.4]
    (line,) = compare(recorded(), after).moved
    assert line.startswith("square x rnd: robust at 200 was 50, is 40 (-10 points); exact")


def test_keys_may_change_where_numbers_do_not():
    after = recorded()
    after.cells[key()]["cell"] = "another"
    assert compare(recorded(), after).moved == []


@pytest.mark.parametrize(("column", "value"), [("queries", 7), ("distance", 0.1 + 1e-12)])
def test_a_single_image_that_moved_is_told_here(column, value):
    after = recorded()
    after.images[key()][column] = after.images[key()][column].astype(float)
    after.images[key()].loc[3, column] = value
    (line,) = compare(recorded(), after).moved
    assert line == "square x rnd: 1 of 100 images moved; exact: cannot differ by chance"
    assert compare(recorded(), elsewhere(after)).moved == []


def test_last_digits_of_distances_move_nothing_elsewhere():
    after = recorded()
    for rows in after.images.values():
        rows["distance"] += 1e-12
    verdict = compare(recorded(), elsewhere(after))
    assert (verdict.moved, verdict.still[:23]) == ([], "0 of 300 images moved, ")


def test_other_tables_are_compared_row_by_row_here(place):
    row = dict(dataset="mnist", model="cnn", seed=0, images=5, draws=1, matched_drop=None)
    table = pd.DataFrame([{**row, "defense": name, "drop": 0.1, "look": name} for name in "ab"])
    before = replace(recorded(), tables={"defenses.csv": table})
    moved = table.assign(drop=[0.1, 0.2], look=["c", "d"])
    lines = compare(before, place(replace(before, tables={"defenses.csv": moved}))).moved
    told = "defenses.csv: b: drop was 0.1, is 0.2; exact: cannot differ by chance"
    assert lines in ([told], []) and bool(lines) is (place(before) is before)
    (line,) = compare(before, replace(before, tables={"defenses.csv": table[:1]})).moved
    assert line.startswith("defenses.csv: b: only in the reference")


def least(limit, tests):
    """Images of a cell that have to move, either way, to be more than a share of them."""
    return next(m for m in range(COUNT) if tests * binom.sf(m - 1, COUNT, limit) < LEVEL)


@pytest.mark.parametrize(("limit", "most"), [(LIMIT, 15), (LIMIT_NEAREST, 45)])
def test_few_images_may_move_elsewhere_and_many_may_not(limit, most):
    before = recorded(key(), key("nes"))
    if limit == LIMIT_NEAREST:
        before.images[key()].at[0, "trace_queries"] = (1, 7)
    bound = least(limit, tests=18)  # of two cells: images, two signs, three outcomes at two budgets
    assert 3 < bound < most
    for moved in (bound - 1, bound):
        after = recorded(key(), key("nes"))
        after.images[key()].loc[: moved - 1, "clean_correct"] = [
            8 + 2 * (n % 2) for n in range(moved)
        ]
        verdict = compare(before, elsewhere(after))
        assert bool(verdict.moved) is (moved == bound), verdict
        assert verdict.still.startswith(f"{moved} of 200 images moved")
    assert verdict.moved[0].startswith(f"square x rnd: {bound} of 100 images moved (p 0.000")


def wide(times):
    before, after = recorded(), recorded()
    for one in (before, after):
        one.images[key()] = pd.concat([images()] * times, ignore_index=True)
    return before, after


def test_one_direction_is_told_though_few_images_move():
    """As many images as may move, all of which need more queries."""
    before, after = wide(times=10)
    after.images[key()].loc[:39:2, "queries"] += 1
    (line,) = compare(before, elsewhere(after)).moved
    assert line.startswith("square x rnd: 20 of 1000 images moved (p 1); queries rose on 20 images")
    after.images[key()].loc[:19:2, "queries"] -= 2
    assert compare(before, elsewhere(after)).moved == []


BROKEN, RIGHT = range(1, 50, 2), range(0, 50, 2)
OUTCOMES = {
    "robust at 200 rose on 25 images": (BROKEN, "broken_at", np.nan),
    "robust at 50 rose on 25 images": (BROKEN, "broken_at", 51.0),
    "first hit at 200 rose on 25 images": (BROKEN, "first_hit", np.nan),
    "expected at 50 rose on 0 images and fell on 25": (RIGHT, "expected_broken", (True, False)),
    "expected at 200 rose on 0 images and fell on 25": (RIGHT, "expected_broken", (False, True)),
    "robust at 50 rose on 0 images and fell on 25": (RIGHT, "attacked", False),
    "right clean answers rose on 0 images and fell on 25": (RIGHT, "clean_correct", 3),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome_is_tested(name):
    """As many images as may move, all one way: the test of images moved is silent."""
    rows, column, value = OUTCOMES[name]
    before, after = wide(times=12)
    table = after.images[key()]
    table[column] = [value if row in rows else old for row, old in table[column].items()]
    (line,) = compare(before, elsewhere(after)).moved
    assert line.startswith("square x rnd: 25 of 1200 images moved (p 1); ")
    assert name in line


def test_chance_alone_is_rarely_called_a_regression():
    """Images move as often as they may, either way; thirty reruns, level one in a thousand."""
    rng = np.random.default_rng(1)
    keys = [key(seed=seed) for seed in range(4)]
    before, found = recorded(*keys), 0
    for _ in range(30):
        after = recorded(*keys)
        for rows in after.images.values():
            moved = rng.random(COUNT) < LIMIT
            step = rng.choice([-1, 1], COUNT) * moved
            rows["queries"] = rows["queries"] + step
            rows["broken_at"] = rows["broken_at"].where(~moved, rng.choice([40.0, np.nan], COUNT))
        found += bool(compare(before, elsewhere(after)).moved)
    assert found <= 1
    assert LEVEL == 0.001


def test_the_p_value_is_holms():
    """The smallest of 27 p values is told times 27."""
    after = recorded()
    after.images[key()].loc[:11, "clean_correct"] = [8, 10] * 6
    (line,) = compare(recorded(), elsewhere(after)).moved
    tests = 3 * (1 + 2 + 3 * len(MARKS))
    assert f"12 of 100 images moved (p {tests * binom.sf(11, 100, LIMIT):.1g})" in line
