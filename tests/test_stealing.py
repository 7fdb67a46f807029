"""The task `steal`: what is asked is billed, what was done is not done again, tables are right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file as load_weights

from benchmark import catalogue
from benchmark.catalogue import STEALERS
from benchmark.config import load_config
from benchmark.defended import Defended
from benchmark.defense import Defense
from benchmark.errors import QueryError, SpecError, StoreError
from benchmark.facts import Traits
from benchmark.inspection import collect
from benchmark.loading import load_dataset, load_victim
from benchmark.rng import RowRng
from benchmark.scores import Scores
from benchmark.stealing import api
from benchmark.stealing import plan as planning
from benchmark.stealing.meter import COMPANY, Meter, chances, drain
from benchmark.stealing.plan import draft, plan
from benchmark.stealing.pool import fitted, open_pool
from benchmark.stealing.request import make_steal
from benchmark.stealing.spec import Theft
from benchmark.stealing.stealer import Scene
from benchmark.stealing.tables import rebuild_steals
from benchmark.store import THEFTS, TRANSFERS, Store
from benchmark.surroundings import Surroundings
from benchmark.tasks import steal as steal_task
from benchmark.tasks.steal import TheftStep, clone_file, state_file

PLUGIN = Path(__file__).parent / "copycat.py"
SMALL = dict(queries=300, budgets="100,200", images=50, seeds="0,1", draws=2)
SHAPE = (1, 28, 28)


ADDED = planning._with_lines


@pytest.fixture
def place(tmp_path, monkeypatch):
    # Training the line of reference takes longer than most of these tests.
    monkeypatch.setattr(planning, "_with_lines", lambda request: list(request.attacks))
    return Surroundings(load_config(cache=tmp_path / "cache"), (PLUGIN,))


def steal(place, out, **more: Any) -> pd.DataFrame:
    given = {"attacks": "copycat", **SMALL, **more}
    return api.steal(out=out, jobs=1, surroundings=place, **given)


def one_theft(place, **more: Any) -> Theft:
    place.load_plugins()
    request = make_steal(**{"attacks": "copycat", **SMALL, "seeds": "0", **more})
    thefts = plan(draft(request, place), place).thefts
    return [one for one in thefts if one.attack.record["name"] == "copycat"][-1]


class Watch(Defense):
    """Remembers what it was shown."""

    def __init__(self, *, stateful: bool = False) -> None:
        self.traits = Traits(stateful=stateful)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def answer(self, victim, images, context):
        self.seen.append((images, context.rows))
        return super().answer(victim, images, context)


def meter(watch: Watch, scores: str = "log-probabilities", batch: int = 1000) -> Meter:
    config = load_config()
    victim = load_victim("mnist-cnn", "mnist", config, "cpu")
    defended = Defended(victim, watch, batch)
    return Meter("x", defended, RowRng(range(COMPANY)), Scores.parse(scores), SHAPE)


def test_every_image_is_billed_and_shown_once_in_order_without_gradient():
    watch = Watch()
    till = meter(watch)
    images = torch.rand(300, *SHAPE)
    found = till.ask(images, 300)
    assert till.used == 300 and found.shape == (300, 10)
    shown = torch.cat([part for part, _ in watch.seen])
    assert torch.equal(shown, images)
    assert [len(part) for part, _ in watch.seen] == [128, 128, 44]
    assert not any(part.requires_grad for part, _ in watch.seen) and not found.requires_grad
    assert torch.allclose(found.sum(1), torch.ones(300))


def test_a_stateful_defense_meets_one_client_and_others_one_stream_a_place():
    alone, many = Watch(stateful=True), Watch()
    for watch in (alone, many):
        meter(watch).ask(torch.rand(5, *SHAPE), 5)
    assert alone.seen[0][1].tolist() == [0] * 5
    assert many.seen[0][1].tolist() == list(range(5))


def test_what_the_attack_does_to_its_images_later_does_not_reach_the_defense():
    watch = Watch()
    images = torch.rand(3, *SHAPE)
    meter(watch).ask(images, 3)
    kept = images.clone()
    images.zero_()
    assert torch.equal(watch.seen[0][0], kept)


@pytest.mark.parametrize(
    ("cheat", "message"),
    [
        ("gradient", "carry a gradient"),
        ("more", "with 50 left"),
        ("outside", "outside"),
        ("shape", "one image is"),
    ],
)
def test_a_cheating_attack_is_refused_in_a_line(place, tmp_path, cheat, message):
    theft = one_theft(place, attacks=f"copycat[cheat={cheat}]", queries=50, budgets=None)
    with pytest.raises(QueryError, match=message):
        TheftStep(theft, tmp_path).run(place)


def test_replies_show_what_scores_allow():
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0], [0.0, 3.0, 0.0, 0.0]])
    true = logits.softmax(1)
    for shown in ("log-probabilities", "probabilities", "logits"):
        assert torch.allclose(chances(logits, Scores.parse(shown)), true, atol=1e-6)
    assert chances(logits, Scores.parse("label")).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    top = chances(logits, Scores.parse("top-2"))
    assert top[0, 2:].tolist() == [0, 0]
    assert float(top[0, 0] / top[0, 1]) == pytest.approx(float(true[0, 0] / true[0, 1]), rel=1e-5)
    assert torch.allclose(chances(logits, Scores.parse("rounded-1")).sum(1), torch.ones(2))


def test_the_pool_is_the_end_of_split_train_at_the_victims_size():
    data = load_dataset("mnist", load_config())
    pool = open_pool(data, 40, (3, 16, 20))
    last = data.splits["train"][::-1][:40]
    assert len(pool) == 40 and pool.labels.tolist() == data.labels[last].tolist()
    images = pool.read(torch.tensor([3, 0]))
    assert images.shape == (2, 3, 16, 20) and images.min() >= 0 and images.max() <= 1
    assert torch.equal(images[:, 0], images[:, 2])
    same = open_pool(data, None, SHAPE)
    assert len(same) == len(data.splits["train"])
    assert torch.equal(same.read(torch.tensor([1])), data.read(last[1:2]))
    with pytest.raises(SpecError, match="has only 3000"):
        open_pool(data, 3001, SHAPE)


def test_colours_turn_grey_by_their_luma():
    colour = torch.zeros(1, 3, 2, 2)
    colour[:, 1] = 1.0
    assert fitted(colour, (1, 2, 2)).flatten().tolist() == pytest.approx([0.587] * 4)


def test_the_bill_is_exact_and_a_clone_is_kept_at_every_checkpoint(place, tmp_path):
    theft = one_theft(place, attacks="copycat[batch=30]")
    rows = TheftStep(theft, tmp_path).run(place)["rows"]
    assert [(row["budget"], row["queries"]) for row in rows] == [(100, 100), (200, 200), (300, 300)]
    for budget in (100, 200, 300):
        state = load_weights(clone_file(tmp_path, theft.key, budget))
        assert state["2.weight"].shape == (10, 196)
    assert rows[-1]["clone_accuracy"] > 0.4 and rows[-1]["agreement"] > 0.4
    assert rows[-1]["divergence"] > 0 and rows[-1]["divergence_asked"] > 0


@pytest.mark.parametrize("defense", ["none", "rnd", "unig"])
def test_a_theft_that_was_killed_goes_on_as_if_it_had_not_been(
    place, tmp_path, monkeypatch, defense
):
    theft = one_theft(place, defenses=defense)
    whole = TheftStep(theft, tmp_path / "a").run(place)["rows"]
    state_file(place.config.cache_folder, theft.key).unlink()
    entry = STEALERS.get("copycat").build
    real, calls = entry.learn, []

    def killed(self):
        calls.append(self.asked)
        if len(calls) == 2:
            raise KeyboardInterrupt
        yield from real(self)

    monkeypatch.setattr(entry, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        TheftStep(theft, tmp_path / "b").run(place)
    again = TheftStep(theft, tmp_path / "b").run(place)["rows"]
    assert calls == [100, 200, 200, 300]  # the first checkpoint is not done again
    assert again == whole
    for budget in (200, 300):
        pair = [load_weights(clone_file(tmp_path / x, theft.key, budget)) for x in "ab"]
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])


def test_a_state_whose_clones_lie_elsewhere_is_not_used(place, tmp_path):
    theft = one_theft(place)
    whole = TheftStep(theft, tmp_path / "a").run(place)["rows"]
    assert state_file(place.config.cache_folder, theft.key).is_file()
    assert TheftStep(theft, tmp_path / "b").run(place)["rows"] == whole
    assert len(list((tmp_path / "b" / "clones").iterdir())) == 3


def test_a_stateful_defense_is_begun_again(place, tmp_path):
    theft = one_theft(place, defenses="blacklight")
    assert theft.defense.name == "blacklight"
    TheftStep(theft, tmp_path).run(place)
    assert not state_file(place.config.cache_folder, theft.key).exists()


def test_a_budget_below_the_first_step_is_told(place, tmp_path):
    theft = one_theft(place, attacks="copycat[least=150]", budgets=None, queries=140)
    with pytest.raises(QueryError, match="asks nothing with a budget of 140 queries"):
        TheftStep(theft, tmp_path).run(place)


def test_a_checkpoint_below_the_first_step_has_asked_nothing(place, tmp_path):
    theft = one_theft(place, attacks="copycat[least=110,batch=100]")
    rows = TheftStep(theft, tmp_path).run(place)["rows"]
    assert [row["queries"] for row in rows] == [0, 100, 200]


def test_what_an_attack_cannot_do_is_told_before_anything_runs(place, tmp_path):
    with pytest.raises(SpecError, match="a budget of 300 queries: MAZE asks 1920"):
        steal(place, tmp_path / "new", attacks="maze")
    with pytest.raises(SpecError, match="seeds=100: the attacker's pool has 50 images"):
        steal(place, tmp_path / "new", attacks="maze-pd", queries=4000, pool_images=50)
    assert not (tmp_path / "new").exists()


def test_a_damaged_file_is_told_and_its_work_done_again(place, tmp_path, capsys):
    rows = steal(place, tmp_path)
    for kind in (THEFTS, TRANSFERS):
        path = sorted((tmp_path / kind).glob("*.json"))[0]
        path.write_text("{", encoding="utf-8")
        capsys.readouterr()
        assert steal(place, tmp_path).equals(rows)
        assert "is damaged" in capsys.readouterr().err


def test_a_damaged_state_is_named_and_not_used(place, tmp_path):
    theft = one_theft(place)
    path = state_file(place.config.cache_folder, theft.key)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    with pytest.raises(StoreError, match=r"is damaged .*delete it"):
        TheftStep(theft, tmp_path).run(place)


def test_the_questions_do_not_depend_on_the_defense(place, tmp_path):
    seen = []
    for defense in ("none", "rnd"):
        watch = Watch()
        theft = one_theft(place, defenses=defense)
        choice = STEALERS.choose(theft.attack.text)
        attack = choice.entry.build(**choice.values)
        data = load_dataset("mnist", place.config)
        scene = api_scene(theft, open_pool(data, None, SHAPE))
        attack.begin(scene)
        drain(attack, meter(watch), 50)
        seen.append(watch.seen[0][0])
    assert torch.equal(*seen)


def api_scene(theft, pool):
    return Scene(SHAPE, 10, theft.budgets[-1], theft.seed, pool, torch.device("cpu"))


def test_a_run_is_stored_told_and_not_done_again(place, tmp_path, capsys):
    rows = steal(place, tmp_path, defenses="rnd[sigma=0.1]")
    store = Store(tmp_path)
    assert len(store.saved(THEFTS)) >= 4  # two seeds, two defenses, and lines of reference
    assert not list((place.config.cache_folder / "thefts").glob("*.pt"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = steal(place, tmp_path, defenses="rnd[sigma=0.1]")
    assert again.equals(rows)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    table = pd.read_csv(tmp_path / "steals.csv")
    assert len(table) == len(rows)
    assert set(rows["defense"]) == {"none", "rnd[sigma=0.1]"}
    capsys.readouterr()


def test_a_lost_clone_is_stolen_again(place, tmp_path):
    steal(place, tmp_path)
    lost = next((tmp_path / "clones").glob("*-200.safetensors"))
    old = lost.read_bytes()
    lost.unlink()
    steal(place, tmp_path)
    assert lost.read_bytes() == old


def test_rows_say_what_was_measured(place, tmp_path):
    rows = steal(place, tmp_path)
    clones = rows[rows["attack"] == "copycat"]
    single = clones[~clones["seeds"].str.contains("+", regex=False)]
    assert set(clones["seeds"]) == {"0", "1", "0+1"}
    assert set(single["queries"]) == {100, 200, 300}
    assert set(clones.loc[clones["seeds"] == "0+1", "queries"]) == {200, 400, 600}
    assert np.allclose(
        clones["clone_accuracy_normalised"], clones["clone_accuracy"] / clones["victim_accuracy"]
    )
    white = rows[rows["attack"] == "white-box"].set_index("method")["robust_accuracy"]
    noise = float(rows.loc[rows["attack"] == "noise", "robust_accuracy"].iloc[0])
    assert (white < 0.2).all() and noise > 0.5  # the ceiling and the floor of an attack
    pgd = single[(single["method"] == "pgd") & (single["budget"] == 300)]["robust_accuracy"]
    assert (pgd >= white["pgd"]).all()
    assert clones["verdict"].isin(["informative", "uninformative"]).all()
    assert rows.loc[rows["attack"] != "copycat", "verdict"].isna().all()


def test_collecting_makes_the_table_anew(place, tmp_path):
    steal(place, tmp_path)
    path = tmp_path / "steals.csv"
    made = path.read_bytes()
    path.unlink()
    next((tmp_path / "transfers").glob("*.json")).rename(tmp_path / "kept.json")
    said = collect(tmp_path)
    assert "10 transfers and 2 thefts as well" in said
    assert len(path.read_bytes()) < len(made)
    shutil.move(tmp_path / "kept.json", tmp_path / "transfers" / _key(tmp_path / "kept.json"))
    assert "11 transfers" in collect(tmp_path) and path.read_bytes() == made


def _key(path):
    return f"{json.loads(path.read_text('utf-8'))['key']}.json"


def test_a_poor_clone_says_nothing_of_a_defense(place, tmp_path):
    rows = steal(place, tmp_path, attacks="copycat[rate=0]", defenses="rnd")
    clones = rows[rows["attack"].str.startswith("copycat")]
    assert (clones["clone_accuracy_normalised"] < 0.6).all()
    assert set(clones["verdict"]) == {"uninformative"}


def test_transfers_of_missing_thefts_are_left_out(place, tmp_path):
    steal(place, tmp_path)
    keys = Store(tmp_path).saved(THEFTS)
    for key in keys:
        (tmp_path / "thefts" / f"{key}.json").unlink()
    left = rebuild_steals(Store(tmp_path))
    assert set(left["attack"]) == {"noise", "white-box"}
    assert len(Store(tmp_path).saved(TRANSFERS)) > len(left)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attacks": "copycot"}, "unknown stealing attack 'copycot'. Did you mean: copycat"),
        ({"pool": "mnits"}, "unknown dataset 'mnits'. Did you mean: mnist"),
        ({"budgets": "400"}, "--budgets 400 lies beyond --queries 300"),
        ({"seeds": "1,1"}, "a seed is named twice"),
        ({"eps": "2"}, "eps=2.0 is not allowed"),
        ({"pool_images": 9999}, "--pool-images 9999"),
        ({"colour": 1}, "request has an unknown field 'colour'"),
    ],
)
def test_mistakes_are_told_in_a_line_before_anything_runs(place, tmp_path, given, message):
    with pytest.raises((SpecError, LookupError), match=message):
        steal(place, tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


def test_every_line_of_reference_is_added_once():
    asked = make_steal(attacks="knockoff")
    assert ADDED(asked) == ["knockoff", "surrogate"]
    own = ("surrogate[epochs=2]", "knockoff")
    assert ADDED(make_steal(attacks=",".join(own))) == list(own)


def test_copycat_is_a_plugin_like_any(place):
    place.load_plugins()
    assert not STEALERS.get("copycat").builtin
    assert catalogue.STEALERS.choose("copycat[batch=7]").values["batch"] == 7


def test_a_theft_goes_on_on_a_gpu(place, tmp_path):
    """The device that stands for it holds no stream of numbers either."""
    theft = one_theft(place)
    TheftStep(theft, tmp_path).run(place)
    again = steal_task._Run(TheftStep(theft, tmp_path), place)
    again._device = torch.device("meta")
    again._resume()
    assert again._used == 300 and again._attack.asked == 300

    attack = STEALERS.choose("copycat").entry.build()
    attack.scene, attack.kept = None, torch.zeros(3, device="meta")
    attack.resume({"kept": torch.ones(3)})
    assert attack.kept.device.type == "meta"
