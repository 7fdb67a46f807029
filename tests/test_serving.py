"""`bench serve`: what it answers, what it refuses, and that it counts right."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time

import command
import numpy as np
import pytest
import torch
from served import Caller, body, command_serving, grey, serving

from benchmark.config import Config
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.defense import Defense
from benchmark.loading import load_dataset, load_victim
from benchmark.serving.desk import Desk

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def plain():
    with serving(max_images=4) as (url, _), Caller(url) as call:
        yield call


def images(count):
    return load_dataset("mnist", Config()).take(Split.EVAL, count).images


def test_the_endpoint_describes_itself(plain):
    status, about = plain("GET", "/")
    assert status == 200
    assert about.pop("fingerprint").isalnum()
    assert about == {
        "contract": "querybench/1",
        "name": "mnist-cnn",
        "num_classes": 10,
        "shape": [1, 28, 28],
        "shows": "log-probabilities",
        "randomised": False,
        "stateful": False,
        "max_images": 4,
    }


def test_answers_are_the_victims_to_the_last_bit(plain):
    shown = images(4)
    found = plain.labels(shown)
    with torch.no_grad():
        logits = load_victim("mnist-cnn", "mnist", Config(), "cpu")(shown)
    assert found["labels"] == logits.argmax(1).tolist()
    assert torch.equal(torch.tensor(found["scores"]), logits.log_softmax(1))


TOO_LARGE = 2 * 4 * 4 * 28 * 28 + 8192
BAD = {
    "no json": (b"{", 400, "is not JSON"),
    "deep json": (b"[" * 5000, 400, "is not JSON"),
    "a long number": (b"9" * 5000, 400, "is not JSON"),
    "no text": (b"\xff\xfe\xff", 400, "is not JSON"),
    "nothing": (b"", 400, "is not JSON"),
    "a list": (b"[]", 422, "not a JSON object"),
    "no shape": (b'{"images": ""}', 422, "shape is not [n, C, H, W] of images of 1x28x28"),
    "another shape": (body(np.zeros((1, 3, 28, 28))), 422, "of images of 1x28x28"),
    "a flat shape": (body(np.zeros(784)), 422, "of images of 1x28x28"),
    "a shape of words": (body(grey(1), shape=["1", 1, 28, 28]), 422, "shape is not"),
    "a shape of bools": (body(grey(1), shape=[True, True, 28, 28]), 422, "shape is not"),
    "no image": (body(grey(0)), 422, "0 images; allowed: 1 to 4"),
    "too many": (body(grey(4), shape=[5, *SHAPE]), 422, "5 images; allowed: 1 to 4"),
    "a negative number": (body(grey(1), shape=[-1, 1, 28, 28]), 422, "-1 images"),
    "no images": (json.dumps({"shape": [1, *SHAPE]}).encode(), 422, "images is not text"),
    "no base64": (body(grey(1), images="?" * 100), 400, "is not base64"),
    "bytes of an image file": (body(grey(1), images="iVBORw0KGgo="), 400, "holds 8 bytes"),
    "too short": (body(grey(1), shape=[2, *SHAPE]), 400, "holds 3136 bytes, shape 6272"),
    "nan": (body(grey(1, float("nan"))), 422, "NaN or outside"),
    "infinity": (body(grey(1, float("inf"))), 422, "NaN or outside"),
    "too bright": (body(grey(1, 1.0000001)), 422, "NaN or outside"),
    "too dark": (body(grey(1, -1e-9)), 422, "NaN or outside"),
    "a client that is no text": (body(grey(1), client=[1]), 422, "client is not text"),
    "a long client": (body(grey(1), client="x" * 101), 422, "client is not text"),
    "an address as client": (body(grey(1), client="@127.0.0.1"), 422, "client is not text"),
    "a large body": (b"x" * TOO_LARGE, 413, "has more than"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_body_is_refused_and_not_counted(plain, case):
    content, status, words = BAD[case]
    _, before = plain("GET", "/count")
    found, told = plain("POST", "/answer", content)
    assert found == status and words in told["error"] and list(told) == ["error"]
    assert plain("GET", "/count") == (200, before)


@pytest.mark.parametrize("kind", ["text/plain", "image/png", "application/jsonl", ""])
def test_what_is_no_json_by_its_header_is_refused(plain, kind):
    status, told = plain("POST", "/answer", body(grey(1)), {"Content-Type": kind})
    assert status == 415 and "application/json" in told["error"]


def test_a_header_with_a_charset_is_json(plain):
    header = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert plain("POST", "/answer", body(grey(1)), header)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("POST", "/", 405), ("GET", "/answer", 405), ("PUT", "/count", 405)],
)
def test_other_addresses_are_refused_in_json(plain, method, path, status):
    found, told = plain(method, path)
    assert found == status and "POST /answer" in told["error"]


def raw(url, *parts):
    """Send bytes as they are; give back what comes until the server closes or a second is over."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as line:
        for part in parts:
            line.sendall(part)
        line.settimeout(5)
        return line.recv(65536)


def test_a_body_too_large_is_refused_before_it_is_read(plain):
    head = b"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    told = raw(plain._url, head + b"Content-Length: 99999999\r\n\r\n")  # and no body
    assert b"413" in told.split(b"\r\n")[0]


def test_a_client_that_sends_far_too_much_reads_why_and_may_go_on(plain):
    for _ in range(5):
        status, told = plain("POST", "/answer", b"x" * 4_000_000)
        assert status == 413 and "has more than" in told["error"]
    assert plain("POST", "/answer", body(grey(1)))[0] == 200


def test_what_was_refused_waits_no_more(plain):
    statuses = {plain("POST", "/answer", b"{")[0] for _ in range(40)}  # more than may wait
    assert statuses == {400}


def test_a_stream_without_a_length_is_cut_off(plain):
    head = b"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    piece = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    told = raw(plain._url, head + b"Transfer-Encoding: chunked\r\n\r\n", piece, piece)  # no end
    assert b"413" in told.split(b"\r\n")[0]


def test_a_bug_shows_no_traceback(capfd):
    with serving() as (url, service), Caller(url) as call:
        service._desk.answer = None
        status, told = call("POST", "/answer", body(grey(1)))
    assert (status, told) == (500, {"error": "the server failed"})
    assert "TypeError" in capfd.readouterr().err  # the owner sees it


def test_counts_are_kept_by_client_and_by_address():
    with serving() as (url, _), Caller(url) as call:
        assert call.labels(grey(3), client="a")["answered"] == 3
        assert call.labels(grey(2), client="b")["answered"] == 2
        assert call.labels(grey(1), client="a")["answered"] == 4
        assert call.labels(grey(5))["answered"] == 5
        _, counts = call("GET", "/count")
    known = {"a": 4, "b": 2, "@127.0.0.1": 5}
    assert counts == {"answered": 11, "clients": known, "forgotten": 0}


def desk(defense, remembered=1000, seed=0):
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    fresh = Defended(victim, defense, 64).fresh
    return Desk(fresh, seed, torch.device("cpu"), remembered)


class Noisy(Defense):
    """Adds a draw of the client's stream to every logit."""

    def on_logits(self, logits, context):
        return logits + context.rng.normal(context.rows, (1,))


def test_a_client_is_forgotten_when_others_asked_later_and_no_count_is_lost():
    one = desk(Noisy(), remembered=2)
    first = one.answer(grey(1), "a")[0]
    one.answer(grey(2), "b")
    assert not torch.equal(one.answer(grey(1), "a")[0], first)  # its stream goes on
    one.answer(grey(3), "c")  # b has asked nothing for longest
    assert one.count() == {"answered": 7, "clients": {"a": 2, "c": 3}, "forgotten": 2}
    assert one.answer(grey(2), "b")[1] == 2
    assert torch.equal(one.answer(grey(1), "a")[0], first)  # forgotten, it starts anew


def test_the_noise_of_a_client_does_not_depend_on_others():
    alone, together = desk(Noisy()), desk(Noisy())
    answers = [alone.answer(grey(2), "a")[0] for _ in range(3)]
    for answer in answers:
        together.answer(grey(4), "b")
        assert torch.equal(together.answer(grey(2), "a")[0], answer)
    assert not torch.equal(desk(Noisy()).answer(grey(2), "b")[0], answers[0])
    assert not torch.equal(desk(Noisy(), seed=1).answer(grey(2), "a")[0], answers[0])


class Counting(Defense):
    """Answers class 0 until a client has asked three images."""

    def __init__(self):
        self.asked = 0

    def on_logits(self, logits, context):
        self.asked += len(logits)
        return logits * (1.0 if self.asked > 3 else 0.0)


def test_a_stateful_defense_keeps_its_state_by_client():
    one = desk(Counting())
    assert one.answer(grey(3), "a")[0].abs().max() == 0
    assert one.answer(grey(1), "b")[0].abs().max() == 0
    assert one.answer(grey(1), "a")[0].abs().max() > 0


@pytest.mark.parametrize(
    ("defense", "randomised", "stateful"),
    [("rnd", True, False), ("blacklight", False, True), ("rounding", False, False)],
)
def test_a_defended_endpoint_says_how_it_behaves(defense, randomised, stateful):
    with serving(defense, scores="label") as (url, _), Caller(url) as call:
        _, about = call("GET", "/")
        found = call.labels(grey(2))
    assert about["randomised"] is randomised and about["stateful"] is stateful
    assert about["shows"] == "label" and found["scores"] is None
    assert about["name"] == f"mnist-cnn-{defense}"


def test_another_strength_has_another_fingerprint():
    prints = []
    for defense in ("none", "rnd", "rnd[sigma=0.3]", "rnd"):
        with serving(defense) as (url, _), Caller(url) as call:
            prints.append(call("GET", "/")[1]["fingerprint"])
    assert len(set(prints)) == 3 and prints[1] == prints[3]


def test_what_waits_too_long_is_sent_away(monkeypatch):
    monkeypatch.setattr("benchmark.serving.application._AT_A_TIME", 1)
    with serving() as (url, service), Caller(url) as call:
        go, answer = threading.Event(), service._desk.answer
        started = threading.Event()

        def slow(shown, name):
            started.set()
            go.wait(10)
            return answer(shown, name)

        service._desk.answer = slow
        done = []
        with Caller(url) as other:
            thread = threading.Thread(target=lambda: done.append(other.labels(grey(1))))
            thread.start()
            assert started.wait(10)
            status, told = call("POST", "/answer", body(grey(1)))
            go.set()
            thread.join()
    assert status == 503 and "wait already" in told["error"]
    assert done[0]["answered"] == 1


def test_eight_clients_at_once_get_right_answers_and_counts():
    shown = images(40)
    right = load_victim("mnist-cnn", "mnist", Config(), "cpu")(shown).argmax(1)
    wrong, sums = [], {}

    def client(name, until):
        rng, total = np.random.default_rng(int(name)), 0
        with Caller(url) as call:
            while time.monotonic() < until:
                picks = rng.integers(0, 40, int(rng.integers(1, 9)))
                found = call.labels(shown[picks], client=name)
                total += len(picks)
                wrong.extend([] if found["labels"] == right[picks].tolist() else [name])
                wrong.extend([] if found["answered"] == total else [name])
            sums[name] = total

    with serving() as (url, service):
        names = [str(number) for number in range(8)]
        until = time.monotonic() + 2
        threads = [threading.Thread(target=client, args=(name, until)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = service.count()
    assert wrong == [] and len(sums) == 8 and min(sums.values()) > 0
    assert counts == {"answered": sum(sums.values()), "clients": sums, "forgotten": 0}


def test_the_command_ends_cleanly_with_its_counts(tmp_path):
    given = ["--defense", "rnd[sigma=0.05]", "--scores", "top-3"]
    with command_serving(*given, cwd=tmp_path) as server:
        assert "mnist-cnn on mnist behind rnd[sigma=0.05], answers show top-3" in server.line
        assert "stop with Ctrl-C" in server.line
        with Caller(server.url) as call:
            found = call.labels(grey(7))
        assert [sum(score is not None for score in row) for row in found["scores"]] == [3] * 7
        ended = server.end(signal.SIGINT)
    assert ended == (0, "answered 7 images to 1 client\n", "")


BAD_OPTIONS = [
    (["--defense", "rmd"], "unknown defense 'rmd'"),
    (["--defense", "rnd,rounding"], "--defense names 2 defenses"),
    (["--scores", "raw"], "scores=raw is not allowed"),
    (["--host", "256.0.0.1"], "cannot listen on 256.0.0.1 port 8000"),
    (["--port", "70000"], "--port"),
    (["--max-images", "0"], "--max-images"),
]
bench = command.bench


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS)
def test_a_bad_option_is_one_line(bench, options, words):
    outcome = bench("serve", *options)
    assert outcome.code == 2 and words in outcome.err and outcome.err.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(bench):
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        outcome = bench("serve", "--port", port)
    assert outcome.code == 2 and f"cannot listen on 127.0.0.1 port {port}" in outcome.err


def test_what_is_not_installed_is_named(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    outcome = bench("serve")
    assert outcome.code == 2 and "pip install 'querybench[serve]'" in outcome.err
