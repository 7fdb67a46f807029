"""Runs to the budget: several radii from one run, and what tables say of distances."""

from __future__ import annotations

import command
import numpy as np
import pandas as pd
import pytest

from benchmark import api
from benchmark.config import Config
from benchmark.plan import draft, plan
from benchmark.request import make_request
from benchmark.spec import together
from benchmark.surroundings import Surroundings
from benchmark.tasks.attack import run_shards

HERE = Surroundings(Config())
ASKED = {"attacks": "rays", "images": 6, "queries": 60, "eps": (0.1, 0.2, 0.3), "shard": 3}
TABLES = ("cells.csv", "shards.csv", "images.parquet")
bench = command.bench


def groups(**given):
    return together(plan(draft(make_request(**{**ASKED, **given}), HERE), HERE).shards)


def test_radii_share_a_run_to_the_budget_and_nothing_else_is_shared():
    found = groups(attacks="rays,signflip,square", defenses="rnd", run_to_budget=True)
    sizes = {(group[0].cell.attack.name, len(group)) for group in found}
    assert sizes == {("rays", 3), ("signflip", 3), ("square", 1)}
    assert len(found) == 2 * 2 * (1 + 1 + 3)  # shards, defenses, groups of the attacks
    for group in found:
        assert len({(s.first, s.cell.attack.name, s.cell.defense.name) for s in group}) == 1
    assert all(len(group) == 1 for group in groups(attacks="rays,square"))


def test_only_an_attack_that_looks_for_the_nearest_runs_to_the_budget():
    for group in groups(attacks="rays,square", run_to_budget=True):
        cell = group[0].cell
        assert cell.protocol.run_to_budget == (cell.attack.name == "rays")
    square = {bool(b): plan(draft(_square(b), HERE), HERE).shards[0].key for b in (False, True)}
    assert square[False] == square[True]


def _square(run_to_budget):
    return make_request(**{**ASKED, "attacks": "square", "run_to_budget": run_to_budget})


@pytest.mark.parametrize("defense", ["none", "rnd", "unig", "unig[composition=batch]"])
def test_a_shared_run_gives_what_a_run_of_each_radius_gives(defense):
    group = groups(defenses=defense, run_to_budget=True)[-1]
    assert len(group) == 3 and group[0].cell.defense.name == defense
    shared = run_shards(group, HERE)
    for shard, result in zip(group, shared, strict=True):
        (alone,) = run_shards((shard,), HERE)
        assert result.shard.key == shard.key
        assert result.images == alone.images
        assert result.costs == alone.costs
    breaks = [result.images["broken_at"] for result in shared]
    assert len({str(each) for each in breaks}) > 1


def test_stopping_at_eps_changes_nothing_before_the_break():
    def found(**given):
        shards = [shard for group in groups(**given) for shard in group]
        results = {(s.first, s.cell.threat.eps): run_shards((s,), HERE)[0].images for s in shards}
        return {place: (one["first_hit"], one["broken_at"]) for place, one in results.items()}

    assert found() == found(run_to_budget=True)


def test_traces_and_breaks_tell_one_story():
    for group in groups(run_to_budget=True):
        for result in run_shards(group, HERE):
            eps = result.shard.cell.threat.eps
            found = result.images
            for place, broken in enumerate(found["broken_at"]):
                inside = [
                    number
                    for number, away in zip(
                        found["trace_queries"][place], found["trace_distances"][place], strict=True
                    )
                    if away <= eps + 1e-6
                ]
                assert broken == (inside[0] if inside else None)
                assert found["queries"][place] == 60 * found["attacked"][place]


def test_a_run_that_lost_one_radius_is_completed_to_the_same_bytes(tmp_path):
    request = {**ASKED, "defenses": "rnd", "run_to_budget": True}
    cells = api.run(**request, out=tmp_path, surroundings=HERE, jobs=1)
    before = {name: (tmp_path / name).read_bytes() for name in TABLES}
    table = pd.read_csv(tmp_path / "shards.csv")
    lost = table[(table["eps"] == 0.2)]["shard"]
    assert len(lost) == 4 and table["run_to_budget"].all()
    for key in lost:
        (tmp_path / "shards" / f"{key}.json").unlink()
    again = api.run(**request, out=tmp_path, surroundings=HERE, jobs=1)
    pd.testing.assert_frame_equal(cells, again)
    assert {name: (tmp_path / name).read_bytes() for name in TABLES} == before


def test_tables_give_robust_accuracy_at_every_radius_and_median_distances(tmp_path):
    request = {**ASKED, "attacks": "rays,square", "budgets": (20, 60), "run_to_budget": True}
    cells = api.run(**request, out=tmp_path, surroundings=HERE, jobs=1)
    rays = cells[cells["attack"] == "rays"]
    shares = rays.pivot_table(index="budget", columns="eps", values="robust_accuracy")
    assert (np.diff(shares.to_numpy(), axis=0) <= 0).all()  # more queries break more
    assert (np.diff(shares.to_numpy(), axis=1) <= 0).all()  # and so do wider balls
    images = pd.read_parquet(tmp_path / "images.parquet")
    images = images[images["shard"].isin(_shards(tmp_path, "rays", 0.1)) & images["attacked"]]
    for budget, row in rays[rays["eps"] == 0.1].set_index("budget").iterrows():
        nearest = [
            min([d for n, d in zip(q, away, strict=True) if n <= budget], default=np.inf)
            for q, away in zip(images["trace_queries"], images["trace_distances"], strict=True)
        ]
        assert row["distance_median"] == pytest.approx(np.median(nearest), abs=1e-6)
    assert cells[cells["attack"] == "square"]["distance_median"].isna().all()


def test_the_worst_case_counts_an_attack_that_was_run_both_ways_once(tmp_path):
    for run_to_budget in (False, True):
        asked = {"attacks": "rays,square", "eps": 0.2, "run_to_budget": run_to_budget}
        api.run(**{**ASKED, **asked}, out=tmp_path, surroundings=HERE, jobs=1)
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert cells["attack"].value_counts().to_dict() == {"rays": 2, "square": 1, "worst-case": 1}
    worst = cells[cells["attack"] == "worst-case"].iloc[0]
    assert worst["members"] == "rays+square" and not worst["run_to_budget"]


def _shards(folder, attack, eps):
    table = pd.read_csv(folder / "shards.csv")
    return table[(table["attack"] == attack) & (table["eps"] == eps)]["shard"]


def test_the_printed_table_has_a_line_for_every_radius(bench):
    size = ("--images", 3, "--queries", 20, "--jobs", 1)
    shown = bench("run", "--attacks", "rays", "--eps", "0.1,0.3", "--run-to-budget", *size).out
    assert "eps 0.1, 0.3" in shown and "median distance" in shown
    assert [line.split()[2] for line in shown.splitlines() if " rays " in line] == ["0.1", "0.3"]
