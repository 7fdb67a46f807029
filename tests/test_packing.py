"""Shards that are run as one give what they give alone."""

from __future__ import annotations

import pytest
import torch

from benchmark import api, room, scheduler
from benchmark.config import Config
from benchmark.packing import Pack, packed, rows_of, smaller
from benchmark.plan import draft, plan
from benchmark.request import make_request
from benchmark.spec import together
from benchmark.surroundings import Surroundings
from benchmark.tasks.attack import run_shards

# One image in a forward pass, so that no rounding depends on the company.
HERE = Surroundings(Config(), batch=1)
ASKED = {"attacks": "square", "images": 8, "queries": 30, "shard": 3}
BATCHED = "unig[composition=batch]"
TABLES = ("cells.csv", "shards.csv", "images.parquet")


def groups(**given):
    return together(plan(draft(make_request(**{**ASKED, **given}), HERE), HERE).shards)


@pytest.mark.parametrize("defense", ["none", "rnd", "feature"])
@pytest.mark.parametrize("attack", ["square", "nes"])
def test_a_pack_gives_what_its_shards_give_alone(attack, defense):
    mine = [g for g in groups(attacks=attack, defenses=defense) if _name(g) == defense]
    (pack,) = packed(mine, lambda _: 100)
    assert [one.first for one in pack] == [0, 3, 6]
    for result in run_shards(pack, HERE):
        (alone,) = run_shards((result.shard,), HERE)
        assert result.images == alone.images
        assert result.costs == alone.costs


def test_a_pack_of_several_radii_gives_what_each_gives_alone():
    given = {"attacks": "rays", "eps": (0.1, 0.3), "run_to_budget": True}
    (pack,) = packed([g for g in groups(**given, defenses="rnd") if _name(g) == "rnd"], lambda _: 9)
    assert len(pack) == 2 * 3
    results = run_shards(pack, HERE)
    assert {one.shard.key for one in results} == {shard.key for shard in pack}
    for result in results:
        (alone,) = run_shards((result.shard,), HERE)
        assert result.images == alone.images
        assert result.costs == alone.costs


def _name(group):
    return group[0].cell.defense.name


def test_packs_hold_one_cell_and_no_more_rows_than_fit():
    found = packed(groups(attacks="square,nes"), lambda _: 6)
    sizes = [(pack[0].cell.attack.name, [one.first for one in pack]) for pack in found]
    assert sorted(sizes) == [("nes", [0, 3]), ("nes", [6]), ("square", [0, 3]), ("square", [6])]
    assert [rows_of(pack) for pack in packed(groups(), lambda _: 2)] == [3, 3, 2]
    assert sorted(s.key for pack in found for s in pack) == sorted(
        s.key for group in groups(attacks="square,nes") for s in group
    )


@pytest.mark.parametrize(
    "defense", ["unig[composition=batch]", "blacklight", "rnd+unig[composition=batch]"]
)
def test_shards_whose_images_meet_in_a_defense_stay_alone(defense):
    mine = [group for group in groups(defenses=defense) if _name(group) == defense]
    assert packed(mine, lambda _: 100) == mine and len(mine) == 3


def test_radii_of_other_images_are_no_pack():
    (first,) = groups(images=3, eps=(0.1,))
    (second,) = groups(images=6, eps=(0.2,))[1:]
    (third,) = groups(images=6, eps=(0.2,))[:1]
    assert Pack.of((*first, *third)).blocks == ((0, 3),)
    with pytest.raises(ValueError, match="other images"):
        Pack.of((*first, *third, *second))


def test_where_memory_runs_out_fewer_shards_are_run_as_one(monkeypatch):
    monkeypatch.setattr(room, "_halvings", {})
    seen = []

    def needing(shards, here):
        seen.append(rows_of(shards))
        if rows_of(shards) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_shards(shards, here)

    monkeypatch.setattr(scheduler, "run_shards", needing)
    (pack,) = packed(groups(), lambda _: 100)
    here = Surroundings(Config(), batch=4)
    results = room.within_memory(lambda place: scheduler._run_pack(pack, place), here)
    assert seen == [8, 3, 3, 2]  # eight, then four at most
    assert [one.shard.first for one in results] == [0, 3, 6]
    assert [rows_of(part) for part in smaller(pack, 0)] == [8]


def test_a_shard_that_fails_leaves_no_larger_hole_than_alone(tmp_path, monkeypatch):
    def broken(shards, here):
        if any(one.first == 3 for one in shards):
            raise RuntimeError("the fourth image")
        return run_shards(shards, here)

    monkeypatch.setattr(scheduler, "run_shards", broken)
    monkeypatch.setattr(api, "_pieces", lambda todo, _: packed(together(todo), lambda _: 100))
    with pytest.raises(api.ShardsFailedError, match="1 shard failed") as caught:
        api.run(out=tmp_path, jobs=1, surroundings=HERE, **ASKED)
    assert "images 3-5" in str(caught.value) and "images 0-2" not in str(caught.value)
    assert len(list((tmp_path / "shards").glob("*.json"))) == 2
    assert len(list((tmp_path / "failures").iterdir())) == 1


def test_a_packed_run_writes_the_same_tables(tmp_path, monkeypatch):
    given = dict(ASKED, defenses=f"rnd,{BATCHED}")
    api.run(out=tmp_path / "alone", jobs=1, surroundings=HERE, **given)
    sizes = []

    def pieces(todo, _surroundings):
        found = packed(together(todo), lambda _: 100)
        sizes.extend(len(pack) for pack in found)
        return found

    monkeypatch.setattr(api, "_pieces", pieces)
    api.run(out=tmp_path / "packed", jobs=1, surroundings=HERE, **given)
    assert sorted(sizes) == [1] * 3 + [3] * 2  # where queries meet in a defense, shards stay alone
    for name in TABLES:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()


def test_a_cpu_runs_every_shard_alone():
    shards = [shard for group in groups() for shard in group]
    assert api._pieces(shards, HERE) == [(shard,) for shard in shards]
