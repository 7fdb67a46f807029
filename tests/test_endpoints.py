"""`http:` victims: asked right, paid, named without an address, refused where they cannot do."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import command
import pandas as pd
import pytest
import torch
from command import refused
from served import Scripted, on_a_port, serving
from support import refusal

from benchmark.config import Config, load_config
from benchmark.endpoints import Endpoint
from benchmark.errors import SpecError, VictimError
from benchmark.loading import forget, load_victim
from benchmark.scores import Scores
from benchmark.serving.pace import Pace
from benchmark.serving.shown import read_scores, written_scores
from benchmark.spending import Bill, counted

bench = command.bench
SMALL = ["--images", "6", "--queries", "20", "--shard", "3", "--jobs", "1"]


@pytest.fixture
def loaded(tmp_path):
    """Load the victim at a URL, with what the config file says besides."""

    def load(url, **given):
        endpoint = Endpoint(name="shop", url=url, **given)
        config = Config(cache=tmp_path / "cache", endpoints=(endpoint,))
        return load_victim("http:shop", "mnist", config, "cpu")

    forget()
    yield load
    forget()


def images(count):
    generator = torch.Generator().manual_seed(0)
    return torch.rand((count, 1, 28, 28), generator=generator)


def asked(victim, count):
    with torch.no_grad():
        return victim(images(count))


# --- what is sent, and what comes back ---


@pytest.mark.parametrize(
    "shows", ["logits", "log-probabilities", "probabilities", "top-3", "rounded-2", "label"]
)
def test_a_remote_victim_shows_what_the_local_one_shows(loaded, shows):
    scores = Scores.parse(shows)
    with serving(scores=shows, max_images=7) as (url, _):
        found = asked(loaded(url), 20)
    local = asked(load_victim("mnist-cnn", "mnist", Config(), "cpu"), 20)
    assert torch.equal(found.argmax(1), local.argmax(1))
    assert shows != "logits" or torch.equal(found, local)
    if shows != "label":
        (mine, seen), (wanted, visible) = scores.show(found), scores.show(local)
        assert torch.allclose(mine, wanted, rtol=1e-5, atol=2e-6)
        assert seen is visible is None or torch.equal(seen, visible)


@pytest.mark.parametrize("shows", ["top-2", "top-1", "rounded-1", "rounded-3", "label"])
def test_the_label_leads_where_scores_tie(shows):
    scores = Scores.parse(shows)
    logits = torch.tensor([[0.0, 0.0, 1e-4, 0.0], [9.0, 9.00001, 0.0, 0.0], [0.0] * 4])
    labels = logits.argmax(1)
    found = read_scores(written_scores(logits, scores), labels, 4, scores)
    assert torch.equal(found.argmax(1), labels)


def test_a_hidden_class_is_never_among_the_best():
    scores, firsts = Scores.parse("top-3"), torch.linspace(15, 40, 200)
    logits = torch.stack([torch.tensor([first, 0.0, -9.0, -18.0]) for first in firsts.tolist()])
    found = read_scores(written_scores(logits, scores), logits.argmax(1), 4, scores)
    # What probabilities of float32 leave to the others is more than they have.
    assert scores.show(found)[1].tolist() == [[True, True, True, False]] * 200


def test_rounded_probabilities_are_shown_again_as_they_are():
    scores = Scores.parse("rounded-2")
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((500, 10), generator=generator) * 4
    rows = written_scores(logits, scores)
    again = written_scores(read_scores(rows, logits.argmax(1), 10, scores), scores)
    assert again == rows


def test_requests_are_split_to_what_the_endpoint_takes(loaded):
    one = Scripted()
    with on_a_port(one.application()) as url, counted() as bills:
        victim = loaded(url, price=0.5)
        assert asked(victim, 11).argmax(1).tolist() == [0] * 11
    assert [count for _, count in one.asked] == [4, 4, 3]
    assert bills == {"scripted": Bill(images=11, retries=0, price=5.5)}


def test_loading_shows_the_endpoint_no_image(loaded):
    one = Scripted()
    with on_a_port(one.application()) as url:
        loaded(url)
    assert one.asked == []


# --- when something goes wrong ---


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_endpoint_is_asked_again_and_retries_are_no_queries(loaded, status):
    one = Scripted(status, status)
    with on_a_port(one.application()) as url, counted() as bills:
        asked(loaded(url, price=1), 3)
    assert len(one.asked) == 3
    assert bills == {"scripted": Bill(images=3, retries=2, price=3)}


def test_an_endpoint_says_how_long_to_wait(loaded):
    one = Scripted(503, headers={"Retry-After": "1"})
    with on_a_port(one.application()) as url:
        asked(loaded(url), 1)
    (first, _), (second, _) = one.asked
    assert 0.9 < second - first < 5


def test_patience_ends(loaded):
    one = Scripted(503, 503, 503)
    with on_a_port(one.application()) as url, counted() as bills:
        victim = loaded(url, retries=1)
        message = refusal(VictimError, lambda: asked(victim, 1))
    assert message == "endpoint 'shop' answers with status 503: busy"
    assert bills["scripted"] == Bill(images=0, retries=1)


def test_a_server_that_is_gone_is_one_line(loaded):
    with on_a_port(Scripted().application()) as url, counted() as bills:
        victim = loaded(url, retries=1)
    message = refusal(VictimError, lambda: asked(victim, 1))
    assert message.startswith("endpoint 'shop' does not answer: ") and "127.0.0.1" not in message
    assert bills == {}
    refusal(VictimError, lambda: (forget(), loaded(url, retries=0)))


@pytest.mark.parametrize("status", [302, 400, 500])
def test_another_status_is_no_answer_and_not_asked_again(loaded, status):
    one = Scripted(status, headers={"Location": "http://elsewhere.example"})
    with on_a_port(one.application()) as url:
        message = refusal(VictimError, lambda: asked(loaded(url), 1))
    assert message == f"endpoint 'shop' answers with status {status}: busy" and len(one.asked) == 1


GOOD = [0.7, 0.3] + [0.0] * 8
WRONG = [
    (b"<html>", "no JSON", "label"),
    (b"[1]", "not a JSON object", "label"),
    ({"labels": [0]}, "not one label for each of 2", "label"),
    ({"labels": [0, 10]}, "no class from 0 to 9", "label"),
    ({"labels": [0, True]}, "no class from 0 to 9", "label"),
    ({"labels": [0, 0.0]}, "no class from 0 to 9", "label"),
    ({"scores": None}, "one list of scores for each of 2", "probabilities"),
    ({"scores": [GOOD]}, "one list of scores for each of 2", "probabilities"),
    ({"scores": [GOOD, GOOD[:9]]}, "one score for each of 10", "probabilities"),
    ({"scores": [GOOD, ["1", *GOOD[1:]]]}, "a score is no number", "probabilities"),
    (b'{"labels": [0], "scores": [[NaN,0,0,0,0,0,0,0,0,0]]}', "NaN or infinite", "logits"),
    (b'{"labels": [0], "scores": [[1e999,0,0,0,0,0,0,0,0,0]]}', "NaN or infinite", "logits"),
    (b'{"labels": [0], "scores": [[1e99,0,0,0,0,0,0,0,0,0]]}', "too large", "logits"),
    ({"labels": [0, 1], "scores": [GOOD, GOOD]}, "not that of the best", "probabilities"),
    ({"scores": [GOOD, [0.9] * 10]}, "do not sum to 1", "probabilities"),
    ({"scores": [GOOD, [0.9] * 10]}, "do not sum to 1", "rounded-1"),
    ({"scores": [GOOD, [0.0] * 10]}, "do not sum to 1", "log-probabilities"),
    ({"scores": [GOOD, [None, *GOOD[1:]]]}, "does not show probabilities", "probabilities"),
    ({"scores": [GOOD, GOOD]}, "does not show top-2", "top-2"),
    ({"scores": [[0.9, 0.9] + [None] * 8] * 2}, "are none", "top-2"),
]


@pytest.mark.parametrize(("said", "words", "shows"), WRONG)
def test_a_wrong_answer_is_refused_in_a_line(loaded, said, words, shows):
    count = 1 if isinstance(said, bytes) else 2
    with on_a_port(Scripted(said, shows=shows).application()) as url:
        message = refusal(VictimError, lambda: asked(loaded(url), count))
    assert words in message and message.startswith("endpoint 'shop' answers ")


STRANGE = [
    ({"contract": "other/1"}, "contract: "),
    ({"max_images": 0}, "max_images: "),
    ({"shows": "everything"}, "shows: "),
    ({"name": "a b"}, "name: "),
    ({"name": "host/path"}, "name: "),
    ({"fingerprint": "host"}, "fingerprint: "),
    ({"shape": [1, 28]}, "shape"),
    ({"randomised": "no"}, "randomised: "),
    ({"num_classes": 7}, "tells 7 classes of images of 1x28x28"),
    ({"shape": [3, 28, 28]}, "the data set has 10 classes and images of 1x28x28"),
]


@pytest.mark.parametrize(("about", "words"), STRANGE)
def test_what_does_not_fit_is_refused_before_anything_is_asked(loaded, about, words):
    one = Scripted(**about)
    with on_a_port(one.application()) as url:
        assert words in refusal(SpecError, lambda: loaded(url))
    assert one.asked == []


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_an_image_outside_the_box_is_not_sent(loaded, value):
    one = Scripted()
    with on_a_port(one.application()) as url:
        victim = loaded(url)
        message = refusal(VictimError, lambda: victim(torch.full((1, 1, 28, 28), value)))
    assert "[0, 1]" in message and one.asked == []


# --- rate, token, config file ---


def test_a_rate_is_kept_by_all_that_share_its_file(loaded):
    one = Scripted()
    with on_a_port(one.application()) as url:
        victim = loaded(url, rate=20)
        asked(victim, 4)
        forget()
        other = loaded(url, rate=20)  # as another process would
        assert other is not victim
        asked(other, 4)
        asked(victim, 4)
    times = [when for when, _ in one.asked]
    assert times[1] - times[0] > 0.18 and times[2] - times[1] > 0.18  # 4 images at 20 a second


def test_a_pace_starts_anew_where_its_file_is_damaged(tmp_path):
    pace = Pace(tmp_path / "p", 1000.0)
    (tmp_path / "p").write_text("x")
    pace.wait(1)
    assert float((tmp_path / "p").read_text()) > time.time() - 60


def config(text):
    Path("querybench.toml").write_text(text)


def test_the_token_is_sent_and_stands_nowhere(bench, monkeypatch):
    one = Scripted()
    monkeypatch.setenv("SHOP_TOKEN", "open-sesame")
    with on_a_port(one.application()) as url:
        config(f'[endpoints.shop]\nurl = "{url}/"\ntoken_variable = "SHOP_TOKEN"\nprice = 0.01')
        given = ["--model", "http:shop", "--attacks", "rays", "--scores", "label", *SMALL]
        outcome = bench("run", *given, "--out", "out", "--cache", "cache")
        assert outcome.code == 0, outcome.err
    assert one.tokens == {"Bearer open-sesame"}
    images = sum(count for _, count in one.asked)
    said = f"endpoint scripted: {images:,} images answered, 0 requests sent again"
    assert f"{said}; price {images / 100:,.2f}" in outcome.err
    shards = pd.read_csv("out/shards.csv")
    assert set(shards["model"]) == {"http:scripted"}
    written = [path for path in Path().rglob("*") if path.is_file() and path.suffix != ".toml"]
    for path in written:
        for word in (b"open-sesame", b"127.0.0.1", b"SHOP", b"http://", url[-5:].encode()):
            assert word not in path.read_bytes(), (path, word)
    assert len(written) > 5
    assert len(pd.read_csv("out/flags.csv")) == 0  # no scores, so none are flat


def test_a_missing_token_is_told(bench):
    config('[endpoints.shop]\nurl = "http://127.0.0.1:9"\ntoken_variable = "SHOP_TOKEN"')
    told = refused(bench("run", "--model", "http:shop", "--attacks", "rays"))
    assert "the environment variable SHOP_TOKEN has no token" in told


BAD_FILES = [
    ('endpoints = "x"', "endpoints must be tables of the form [endpoints.NAME]"),
    ("[endpoints.shop]\nprice = 1", "[endpoints.shop]: url: Field required"),
    ('[endpoints.shop]\nurl = "ftp://x"', "[endpoints.shop]: url: must be of the form https://"),
    ('[endpoints.shop]\nurl = "http://u:p@x"', "url: must have no user"),
    ('[endpoints.shop]\nurl = "http://x"\nrate = 0', "[endpoints.shop]: rate: "),
    ('[endpoints.shop]\nurl = "http://x"\nprize = 0', "unknown key 'prize'. Did you mean: price?"),
    ('[endpoints.shop]\nurl = "http://x"\nname = "y"', "unknown key 'name'"),
    ('[endpoints.ship]\nurl = "http://x"', "no endpoint 'shop' in the config file"),
]


@pytest.mark.parametrize(("text", "words"), BAD_FILES)
def test_a_bad_config_file_is_one_line(bench, text, words):
    config(text)
    assert words in refused(bench("run", "--model", "http:shop", "--attacks", "rays"))


def test_endpoints_stand_beside_paths_in_the_file(tmp_path, monkeypatch):
    monkeypatch.delenv("QUERYBENCH_CACHE", raising=False)
    file = tmp_path / "a.toml"
    file.write_text('cache = "c"\n[endpoints.shop]\nurl = "https://x/y/"\nrate = 3')
    found = load_config(file=file)
    assert found.cache == tmp_path / "c"
    assert found.endpoints == (Endpoint(name="shop", url="https://x/y", rate=3.0),)
    assert found.endpoints[0].check_certificate and not found.endpoints[0].headers()
    assert isinstance(hash(found), int)


# --- what is refused before anything runs ---


@pytest.mark.parametrize(
    ("shows", "given", "words"),
    [
        (
            "label",
            [],
            "shows labels alone, less than --scores log-probabilities: add --scores labe",
        ),
        ("top-5", [], "add --scores top-5"),
        ("top-5", ["--scores", "top-6"], "add --scores top-5"),
        ("rounded-3", ["--scores", "top-1"], "add --scores rounded-3"),
        ("probabilities", [], "add --scores probabilities"),
        ("log-probabilities", ["--scores", "logits"], "add --scores log-probabilities"),
        ("label", ["--scores", "label"], "attack 'square' needs access 'scores'"),
        ("logits", ["--probes", "free"], "leave --probes free out"),
        ("logits", ["--defenses", "feature"], "needs weights, features or gradients of its"),
        ("logits", ["--defenses", "unig"], "'scripted' runs elsewhere"),
        ("logits", ["--defenses", "at"], "'scripted' runs elsewhere"),
        ("logits", ["--defenses", "rnd-gf"], "'scripted' runs elsewhere"),
        ("logits", ["--defenses", "pni"], "'scripted' runs elsewhere"),
        ("logits", ["--defenses", "dent"], "'scripted' runs elsewhere"),
        ("logits", ["--defenses", "rounding+anti-adversary"], "defense 'anti-adversary' needs"),
        ("logits", ["--checkpoint", "querybench.toml"], "has weights of its own"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused_first(bench, shows, given, words):
    one = Scripted(shows=shows)
    with on_a_port(one.application()) as url:
        config(f'[endpoints.shop]\nurl = "{url}"')
        outcome = bench("run", "--model", "http:shop", "--attacks", "square", *given)
    assert words in refused(outcome) and one.asked == []


@pytest.mark.parametrize(
    ("has", "asks", "enough"),
    [
        ("logits", "logits", True),
        ("log-probabilities", "top-3", True),
        ("probabilities", "rounded-2", True),
        ("top-5", "top-5", True),
        ("top-5", "top-2", True),
        ("top-5", "label", True),
        ("rounded-3", "rounded-2", True),
        ("rounded-3", "probabilities", False),
        ("top-5", "rounded-2", False),
        ("label", "top-1", False),
        ("label", "label", True),
    ],
)
def test_less_can_be_told_from_more(has, asks, enough):
    assert Scores.parse(has).covers(Scores.parse(asks)) is enough


def test_what_is_not_installed_is_named(loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "urllib3", None)
    assert "pip install 'querybench[http]'" in refusal(SpecError, lambda: loaded("http://x"))


def test_urls_stand_in_no_message_of_a_description(loaded):
    with on_a_port(Scripted(name=json.dumps("x")).application()) as url:
        assert url not in refusal(SpecError, lambda: loaded(url))
