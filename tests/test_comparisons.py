"""Defenses against each other on the same images."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from test_store import image, save, shard

from benchmark import tables
from benchmark.about import About
from benchmark.families import families, lacking
from benchmark.spec import digest
from benchmark.statistics import holm, sign_flips

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_holm_on_an_example_done_by_hand():
    # sorted .01 .02 .03 .04: 4 x .01, 3 x .02, 2 x .03, 1 x .04 which must not fall below .06
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([])).shape == (0,)


@settings(max_examples=80, deadline=None)
@given(SHARES, st.randoms())
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(values, random):
    p = np.array(values)
    found = holm(p)
    assert (found >= p).all() and (found <= np.minimum(1, len(p) * p) + 1e-15).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()
    assert found.min() == pytest.approx(min(1, len(p) * p.min()))
    order = random.sample(range(len(p)), len(p))
    assert holm(p[order]) == pytest.approx(found[order])


def test_families_hold_one_drop_and_what_costs_nothing():
    drops = {"none": [], "a": ["1", "10"], "b": ["2", "10"], "kept": [], "written": []}
    free = {"none", "kept"}
    assert families(drops, free) == {
        "1": ["a", "kept", "none"],
        "2": ["b", "kept", "none"],
        "10": ["a", "b", "kept", "none"],
        None: ["kept", "none", "written"],
    }
    assert list(families(drops, free)) == ["1", "2", "10", None]
    assert None not in families({"none": [], "a": ["1"]}, {"none"})
    assert families({"none": [], "a": []}, {"none"}) == {None: ["a", "none"]}


def test_only_repeated_questions_may_be_missing_and_only_all_of_them():
    every = ["nes", "square", "square[eot=5]", "square[eot=10]"]
    assert lacking(["nes", "square"], every) == []
    assert lacking(["nes", "square", "square[eot=5]"], every) == ["square[eot=10]"]
    assert lacking(["square"], every) == ["nes"]


def outcome(right, place):
    """An image that is misread when clean (None), or right (True) or broken (False)."""
    return {
        **image(0), "image": place, "clean_correct": 0 if right is None else 9,
        "attacked": right is not None, "first_hit": 7 if right is False else None,
        "broken_at": 7 if right is False else None, "queries": 50 if right else 7,
        "trace_queries": None, "trace_distances": None,
    }  # fmt: skip


def cell(defense, attack, rights, **more):
    """A shard that is a whole cell."""
    entries = {"attack": {"name": attack}, "defense": {"name": defense}, "dataset": {"v": 1}}
    about = {
        "defense": defense, "attack": attack, "images": len(rights),
        "parameters": json.dumps(entries), **more,
    }  # fmt: skip
    about["cell"] = digest(about)
    rows = [outcome(right, place) for place, right in enumerate(rights)]
    return shard(0, len(rights), about, rows)


def rows(shards, about=None):
    found = tables.comparison_table(tables._settings(shards), about or About([], []))
    return found.set_index(["attack", "defense_a", "defense_b"])


Y, N = True, False


def test_counts_are_those_of_the_images_and_the_worst_case_joins_attacks():
    found = rows([
        cell("a", "nes", [Y, Y, Y, N, None, Y]), cell("b", "nes", [Y, N, N, Y, Y, None]),
        cell("a", "square", [N, Y, Y, Y, None, Y]), cell("b", "square", [Y, Y, Y, Y, Y, None]),
    ])  # fmt: skip
    assert found["only_a"].to_dict() == {
        ("nes", "a", "b"): 3, ("square", "a", "b"): 1, ("worst-case", "a", "b"): 3,
    }  # fmt: skip
    assert found["only_b"].tolist() == [2, 2, 3]
    assert found["p"].tolist() == [binomtest(3, 5).pvalue, binomtest(1, 3).pvalue, 1.0]
    assert set(found["images"]) == {6} and set(found["budget"]) == {50}


def test_a_hit_after_the_budget_breaks_nothing_and_on_its_last_query_it_does():
    late = cell("b", "nes", [N, N])
    late["images"]["broken_at"] = [50, 51]
    found = rows([cell("a", "nes", [Y, Y]), late])
    assert found[["only_a", "only_b"]].to_numpy().tolist() == [[1, 0]]


def test_correction_is_over_the_pairs_of_one_attack():
    ahead, even = [Y] * 12, [N] * 12
    three = [
        cell(name, "nes", rights) for name, rights in zip("abc", (ahead, even, even), strict=True)
    ]
    found = rows([*three, cell("a", "square", ahead), cell("b", "square", even)])
    alone = binomtest(12, 12).pvalue
    assert found.loc["nes"]["p"].tolist() == pytest.approx([alone, alone, 1.0], rel=1e-3)
    assert found.loc["nes"]["p_holm"].tolist() == pytest.approx([3 * alone, 3 * alone, 1], rel=1e-3)
    assert found.loc["square"]["p_holm"].tolist() == pytest.approx([alone], rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"eps": 0.2}, {"aim": "targeted"}, {"budgets": "10+60"}, {"norm": "l2"},
        {"budgets": "20+50"}, {"protocol": "draws=21"}, {"model": "n"},
        {"parameters": '{"attack": {}, "defense": {}, "dataset": {"v": 2}}'},
    ],
)  # fmt: skip
def test_cells_of_two_settings_are_not_compared(change):
    rights = [Y, N, Y]
    assert len(rows([cell("a", "nes", rights), cell("b", "nes", rights)])) == 1
    assert len(rows([cell("a", "nes", rights), cell("b", "nes", rights, **change)])) == 0


def test_seeds_are_compared_together_as_far_as_both_have_them():
    rights = {("a", 0): [Y, Y, Y, N], ("a", 1): [Y, Y, N, N], ("a", 2): [Y] * 4,
              ("b", 0): [N, Y, N, N], ("b", 1): [N, Y, Y, N]}  # fmt: skip
    some = [cell(name, "nes", right, seed=seed) for (name, seed), right in rights.items()]
    found = rows(some).reset_index().iloc[0]
    assert (found["seeds"], found["only_a"], found["only_b"]) == ("0+1", 2, 0)
    assert found["p"] == 1.0  # one image differs, by two seeds
    assert found["cell_a"] == "+".join(one["cell"]["cell"] for one in some[:2])
    assert len(rows(some[2:])) == 0  # no seed in common


def test_a_lead_is_counted_in_seeds_and_agrees_with_robust_accuracy():
    few, many = [Y] * 3 + [N] * 2, [N] * 3 + [Y] * 2
    shards = [cell("a", "nes", few if seed == 0 else [N] * 5, seed=seed) for seed in range(4)]
    shards += [cell("b", "nes", many, seed=seed) for seed in range(4)]
    found = rows(shards).iloc[0]
    assert (found["only_a"], found["only_b"]) == (3, 8)


def test_defenses_that_lack_an_attack_each_have_no_worst_case():
    found = rows([cell("none", "square", [Y]), cell("a", "nes", [Y])])
    assert len(found) == 0


def test_one_name_with_two_settings_is_two_defenses():
    entries = [json.dumps({"attack": {"name": "nes"}, "defense": {"company": size}, "dataset": {}})
               for size in (50, 100)]  # fmt: skip
    found = rows([cell("a", "nes", [Y, N], parameters=text) for text in entries])
    assert len(found) == 1 and found["only_a"].item() == found["only_b"].item() == 0


def test_the_same_strength_found_twice_is_a_row():
    files = [{"rows": [strength("a[s=1]", "a", 1.0)]},
             {"rows": [strength("a[s=1]", "a", 1.0), strength("a[s=2]", "a", 2.0)]}]  # fmt: skip
    assert len(About([], files).strengths()) == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_flips_count_all_ways_to_flip(differences):
    signs = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(np.dot(flips, differences)) for flips in signs]
    far = np.mean(np.array(sums) >= abs(sum(differences)))
    assert sign_flips(np.array(differences)) == pytest.approx(far)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_with_one_seed_sign_flips_are_mcnemars_exact_test(first, second):
    found = sign_flips(np.repeat([1, -1, 0], [first, second, 5]))
    wanted = binomtest(first, first + second).pvalue if first + second else 1.0
    assert found == pytest.approx(wanted, rel=1e-9, abs=0)


def test_worst_cases_over_different_attacks_are_not_compared():
    whole = [cell(name, attack, [Y, N]) for name in "ab" for attack in ("nes", "square")]
    part = cell("c", "nes", [Y, Y])
    found = rows([*whole, part])
    assert len(found.loc["nes"]) == 3
    assert found.loc["worst-case"].index.tolist() == [("a", "b")]


def test_a_steady_defense_needs_no_repeated_questions():
    repeated = "square[eot=5]"
    found = rows([
        cell("none", "square", [N, N, Y]), cell("a", "square", [Y, Y, Y]),
        cell("a", repeated, [Y, N, N]),
    ])  # fmt: skip
    assert found.loc["worst-case"][["only_a", "only_b"]].to_numpy().tolist() == [[1, 1]]
    assert (
        found.loc["worst-case"]["cell_b"].item()
        == cell("none", "square", [N, N, Y])["cell"]["cell"]
    )


def strength(name, asked, drop, saturated=False):
    return {
        "dataset": "mnist", "model": "m", "defense": asked, "seed": 0, "target": drop,
        "matched": name, "saturated": saturated,
    }  # fmt: skip


def test_matched_defenses_meet_those_of_their_drop_alone_saturated_or_not():
    about = About([], [{"rows": [
        strength("a[s=1]", "a", 1.0), strength("a[s=2]", "a", 2.0),
        strength("b[s=5]", "b", 1.0), strength("b[s=9]", "b", 2.0, saturated=True),
    ]}])  # fmt: skip
    names = ["none", "a[s=1]", "a[s=2]", "b[s=5]", "b[s=9]"]
    found = rows([cell(name, "nes", [Y, N]) for name in names], about).reset_index()
    pairs = found.groupby("matched_drop")[["defense_a", "defense_b"]].agg(list)
    assert pairs.loc["1"].tolist() == [["a[s=1]", "a[s=1]", "b[s=5]"], ["b[s=5]", "none", "none"]]
    assert pairs.loc["2"].tolist() == [["a[s=2]", "a[s=2]", "b[s=9]"], ["b[s=9]", "none", "none"]]
    assert len(found) == 6


def test_what_keeps_every_label_stands_beside_every_drop():
    kept = cell("kept", "nes", [Y, N])
    entries = json.loads(kept["cell"]["parameters"])
    del entries["attack"]
    look = {
        "dataset": "mnist", "model": "m", "defense": "kept", "seed": 0, "images": 2,
        "settings": json.dumps(entries, sort_keys=True, separators=(",", ":")),
        "traits": "randomised, keeps_label",
    }  # fmt: skip
    about = About([{"row": look}], [{"rows": [strength("a[s=1]", "a", 1.0)]}])
    found = rows([cell("a[s=1]", "nes", [Y, N]), kept], about).reset_index()
    assert found[["matched_drop", "defense_b"]].to_numpy().tolist() == [["1", "kept"]]


def test_the_table_is_written_and_small_p_values_survive(tmp_path):
    shards = [cell("a", "nes", [Y] * 60), cell("b", "nes", [N] * 60)]
    tables.rebuild(save(tmp_path, shards))
    found = pd.read_csv(tmp_path / "comparisons.csv").iloc[0]
    assert found["p"] == pytest.approx(2 * 0.5**60, rel=1e-3, abs=0) and found["only_a"] == 60
    keys = set(pd.read_csv(tmp_path / "cells.csv")["cell"])
    assert {found["cell_a"], found["cell_b"]} <= keys
