"""Whole shards from plan to columns: streams, budgets, stops, keys."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmark.catalogue import DEFENSES
from benchmark.config import Config
from benchmark.data import Split
from benchmark.errors import DataError
from benchmark.loading import load_dataset, load_victim
from benchmark.oracle import Oracle
from benchmark.plan import draft, plan
from benchmark.protocol import Protocol
from benchmark.request import make_request
from benchmark.scores import Scores
from benchmark.spec import Cell, Part, Shard
from benchmark.surroundings import Surroundings
from benchmark.tasks import attack as task
from benchmark.types import Aim, Norm, Threat

HERE = Surroundings(Config())
NOISY = "unig"  # random enough that some hits of these runs are refused
BUDGETS = (1, 2, 3, 7, 100)


def shards(**given):
    """Plan a request; one shard for each cell, the undefended first."""
    defaults = {"attacks": "square[p=0.05]", "images": 8, "queries": 40, "eps": 0.1}
    return plan(draft(make_request(**{**defaults, **given}), HERE), HERE).shards


def defended(defense, **given):
    """Plan a request with one defense; its only cell."""
    return shards(defenses=defense, **given)[-1]


def columns(shard):
    return task.run_shards((shard,), HERE)[0].images


@pytest.fixture
def trails(monkeypatch):
    """Queries and answers of the rows of each run shard, in a list that fills."""
    runs = []

    class Watched(Oracle):
        def __init__(self, problem, answer, judge, terms):
            log = [[] for _ in problem.labels]
            runs.append(log)

            def watched(images, rows):
                logits = answer(images, rows)
                for place, row in enumerate(rows.tolist()):
                    log[row].append((images[place].clone(), logits[place].clone()))
                return logits

            super().__init__(problem, watched, judge, terms)

    monkeypatch.setattr(task, "Oracle", Watched)
    return runs


def _misread():
    """Position in split eval of a digit that the bare victim gets wrong by far."""
    data = load_dataset("mnist", HERE.config)
    samples = data.take(Split.EVAL, 300)
    with torch.no_grad():
        scores = load_victim("mnist-cnn", "mnist", HERE.config, "cpu")(samples.images)
    chance = scores.softmax(1).gather(1, samples.labels[:, None])[:, 0]
    assert chance.min() < 0.1
    return int(chance.argmin())


@pytest.mark.parametrize("name", ["square", "nes"])
def test_an_attack_draws_the_same_against_every_defense(trails, name):
    for shard in shards(attacks=name, defenses="rnd,unig,feature", images=4):
        task.run_shards((shard,), HERE)
    assert [len(rows) for rows in trails] == [4] * 4
    for rows in trails[1:]:
        for bare, row in zip(trails[0], rows, strict=True):
            assert torch.equal(bare[0][0], row[0][0])
    assert not torch.equal(trails[0][0][0][0], trails[0][1][0][0])


def test_another_seed_draws_other_queries(trails):
    for seed in (0, 1):
        task.run_shards(shards(seed=seed, images=1)[:1], HERE)
    assert not torch.equal(trails[0][0][0][0], trails[1][0][0][0])


def _draw(purpose, defense="rnd", ids=(3, 5)):
    """First normals of the streams that a shard's defense, or its attack, gets."""
    streams = task._Streams(defended(defense), torch.device("cpu"))
    ids = list(ids)
    rng = streams.attack(ids) if purpose == "attack" else streams.defense(purpose, ids)
    return rng.normal(torch.arange(len(ids)), (4,))


def test_streams_differ_by_purpose_and_belong_to_images():
    draws = [_draw(p) for p in ("attack", "counted", "verify", "expected", "clean")]
    assert len(torch.unique(torch.cat(draws), dim=0)) == 10
    assert torch.equal(_draw("counted", ids=(5, 3)).flip(0), _draw("counted"))


def test_strengths_of_a_defense_share_their_noise_and_defenses_do_not():
    assert torch.equal(_draw("counted"), _draw("counted", "rnd[sigma=0.2]"))
    assert not torch.equal(_draw("counted"), _draw("counted", "unig"))


def test_more_votes_leave_the_counted_answers_as_they_were(trails):
    few, many = (columns(defended(NOISY, votes=votes)) for votes in (9, 99))
    refused = 0
    for place, votes in enumerate(zip(few["attacked"], many["attacked"], strict=True)):
        if not all(votes):
            continue
        rows = [trails[n][sum(c["attacked"][:place])] for n, c in enumerate((few, many))]
        for (asked, told), (again, retold) in zip(*rows, strict=False):
            assert torch.equal(asked, again)
            assert torch.equal(told, retold)
        refused += (few["first_hit"][place] or 40) < min(map(len, rows))
    assert refused > 0


@pytest.mark.parametrize("defense", ["none", NOISY, "unig"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_square_stops_at_a_verified_hit_and_else_at_the_budget(defense, budget):
    found = columns(defended(defense, queries=budget))
    for place, attacked in enumerate(found["attacked"]):
        first, broken = found["first_hit"][place], found["broken_at"][place]
        assert found["queries"][place] == (broken or budget) * attacked
        assert broken is None or first <= broken <= budget
        assert defense != "none" or first == broken
        assert (found["distance"][place] is None) == (broken is None)


def test_a_refused_hit_does_not_stop_the_attack():
    found = columns(defended(NOISY))
    pairs = zip(found["first_hit"], found["broken_at"], strict=True)
    assert any(first is not None and first != broken for first, broken in pairs)


@pytest.mark.parametrize("defense", ["none", NOISY])
def test_a_long_run_shows_what_shorter_runs_would(defense):
    asked = {"attacks": "square[horizon=100]", "images": 6}
    whole = columns(defended(defense, queries=100, budgets=BUDGETS, **asked))
    assert any(whole["broken_at"])
    for budget in BUDGETS:
        part = columns(defended(defense, queries=budget, budgets=(budget,), **asked))
        for name in ("first_hit", "broken_at"):
            seen = [n if n is not None and n <= budget else None for n in whole[name]]
            assert part[name] == seen


@pytest.mark.parametrize("defense", ["none", "rnd"])
def test_an_image_that_is_misread_is_not_attacked_and_never_robust(defense):
    place = _misread()
    cell = defended(defense, images=place + 1, budgets=(1, 2)).cell
    found = columns(Shard(cell, place - 1, 2))
    assert found["attacked"] == [True, False]
    assert (found["queries"][1], found["first_hit"][1], found["broken_at"][1]) == (0, None, None)
    assert found["expected_broken"][1] == [True, True, True]


@pytest.mark.parametrize("defense", ["none", "rnd"])
def test_a_shard_of_misread_images_has_a_result(defense):
    place = _misread()
    found = columns(Shard(defended(defense, images=place + 1).cell, place, 1))
    assert (found["attacked"], found["queries"]) == ([False], [0])


def test_no_change_between_two_checkpoints_has_a_result():
    found = columns(defended("rnd", images=2, queries=100, budgets=(99,), eps=0.9))
    assert all(found["broken_at"])
    assert found["expected_broken"] == [[True, True]] * 2


def _cell(**changed):
    parts = {name: Part(name, name, {"name": name}) for name in ("dataset", "model", "defense")}
    square = Part("square", "square", {"name": "square", "parameters": {"p": 0.05}})
    threat, protocol = Threat(Norm.LINF, 0.1, 100), Protocol((10, 100))
    usual = Cell(**parts, attack=square, threat=threat, protocol=protocol, images=8, seed=0)
    return replace(usual, **changed)


def test_everything_that_can_change_a_result_is_in_the_key():
    other = {"name": "square", "parameters": {"p": 0.1}}
    cells = [
        _cell(),
        *(_cell(**{part: Part("", "", {"name": "x"})}) for part in ("dataset", "model", "defense")),
        _cell(attack=Part("square", "square", other)),
        _cell(threat=Threat(Norm.L2, 0.1, 100)),
        _cell(threat=Threat(Norm.LINF, 0.2, 100)),
        _cell(threat=Threat(Norm.LINF, 0.1, 101)),
        _cell(threat=Threat(Norm.LINF, 0.1, 100, Aim.TARGETED)),
        _cell(protocol=Protocol((10, 100), scores=Scores.parse("top-3"))),
        _cell(protocol=Protocol((10, 100), scores=Scores.parse("top-5"))),
        _cell(protocol=Protocol((11, 100))),
        _cell(protocol=Protocol((10, 100), votes=11)),
        _cell(images=9),
        _cell(seed=1),
        _cell(device="cuda"),
    ]
    keys = {cell.key for cell in cells} | {Shard(cell, 0, 4).key for cell in cells}
    keys |= {Shard(_cell(), 4, 4).key, Shard(_cell(), 0, 2).key}
    assert len(keys) == 2 * len(cells) + 2


def test_where_a_part_was_found_is_not_in_the_key():
    here, there = (Part(text, "x", {"name": "x"}) for text in ("folder:/a/x", "folder:/b/x"))
    assert _cell(dataset=here).key == _cell(dataset=there).key


def test_a_key_is_equal_in_another_process_and_next_year():
    code = "from test_engine import _cell, Shard; print(_cell().key, Shard(_cell(), 0, 4).key)"
    command, here = [sys.executable, "-c", code], Path(__file__).parent
    done = subprocess.run(command, capture_output=True, check=True, text=True, cwd=here)
    keys = [_cell().key, Shard(_cell(), 0, 4).key]
    assert done.stdout.split() == keys
    assert keys == ["a2f20182d0450fd2", "1e4b1b8a5af7e124"]


def test_a_coupled_defense_has_the_shard_size_in_its_key_and_no_other_has():
    def keys(defense):
        return {defended(defense, shard=size).cell.key for size in (4, 8)}

    assert len(keys("unig[composition=batch]")) == 2
    assert len(keys("unig")) == 1


def test_hits_on_a_coupled_defense_are_verified_even_if_nothing_is_random():
    shard = defended("unig[variant=step-only,composition=batch]")
    assert task.run_shards((shard,), HERE)[0].costs["verification_queries"] > 0
    alone = defended("unig[variant=step-only]")
    assert task.run_shards((alone,), HERE)[0].costs["verification_queries"] == 0


def test_a_shard_is_not_run_on_other_weights_than_its_key_says():
    shard = shards()[0]
    record = {**shard.cell.model.record, "fingerprint": "0" * 16}
    model = replace(shard.cell.model, record=record)
    with pytest.raises(DataError, match="changed while the run was going"):
        task.run_shards((Shard(replace(shard.cell, model=model), 0, 4),), HERE)


def test_an_edited_plug_in_has_another_key(tmp_path):
    path = tmp_path / "scaled.py"
    code = """
from dataclasses import dataclass
from benchmark.defense import Defense
from benchmark.registry import Level, Source, Traits, defense

@defense(source=Source(paper="", url="", year=2026), level=Level.LOGITS, traits=Traits())
@dataclass(kw_only=True)
class Scaled(Defense):
    def on_logits(self, logits, context):
        return logits * FACTOR
"""
    found = set()
    for factor in ("1", "2"):
        path.write_text(code.replace("FACTOR", factor))
        command = (
            "from pathlib import Path; from benchmark.catalogue import DEFENSES, load_file; "
            f"load_file(Path({str(path)!r})); print(DEFENSES.choose('scaled').record().get('code'))"
        )
        done = subprocess.run(
            [sys.executable, "-c", command], capture_output=True, check=True, text=True
        )
        found.add(done.stdout.strip())
    assert len(found) == 2 and "" not in found
    assert "code" not in DEFENSES.choose("rnd").record()
