"""Web servers in a thread, for tests: ours, and scripted ones that misbehave."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

pytest.importorskip("starlette", reason="needs querybench[serve]")
pytest.importorskip("uvicorn", reason="needs querybench[serve]")
urllib3 = pytest.importorskip("urllib3", reason="needs querybench[http]")

from starlette.applications import Starlette  # noqa: E402
from starlette.responses import JSONResponse, Response  # noqa: E402
from starlette.routing import Route  # noqa: E402

from benchmark.config import Config  # noqa: E402
from benchmark.request import make_request  # noqa: E402
from benchmark.serving import server  # noqa: E402
from benchmark.serving.opening import opened  # noqa: E402
from benchmark.surroundings import Surroundings  # noqa: E402

WAIT = 10  # seconds a server has to start


@contextmanager
def on_a_port(application):
    """Serve an application from a thread; gives its URL."""
    with server.listening("127.0.0.1", 0) as door:
        made = server.make(application)
        thread = threading.Thread(target=made.run, kwargs={"sockets": [door]})
        thread.start()
        until = time.monotonic() + WAIT
        while not made.started and time.monotonic() < until:
            time.sleep(0.01)
        try:
            yield server.address(door)
        finally:
            made.should_exit = True
            thread.join()


@contextmanager
def serving(defense="none", max_images=64, cache=None, **given):
    """Serve the digits' victim; gives its URL and the service."""
    request = make_request(attacked=False, defenses=defense, dataset="mnist", **given)
    service, _ = opened(request, Surroundings(Config(cache=cache)), max_images)
    try:
        with on_a_port(service.application()) as url:
            yield url, service
    finally:
        service.close()


class Command:
    """A `bench serve` of its own.

    Attributes:
        line: What it said first.
        url: Where it listens.
    """

    def __init__(self, process):
        self._process = process
        self.line = process.stdout.readline()
        assert self.line.startswith("listening on http://127.0.0.1:"), self.line
        self.url = self.line.split()[2].rstrip(":")

    def end(self, how):
        """Send a signal; exit code, and what it said on standard output and error."""
        self._process.send_signal(how)
        said = self._process.communicate(timeout=30)
        return self._process.returncode, *said


@contextmanager
def command_serving(*options, cwd):
    """Start `bench serve` on a free port in another process."""
    command = [sys.executable, "-m", "benchmark.cli", "serve", "--port", "0", *options]
    env = {k: v for k, v in os.environ.items() if not k.startswith("QUERYBENCH_")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=cwd, env=env, text=True, **pipes) as process:
        try:
            yield Command(process)
        finally:
            if process.poll() is None:
                process.kill()


ABOUT = {
    "contract": "querybench/1",
    "name": "scripted",
    "num_classes": 10,
    "shape": [1, 28, 28],
    "shows": "label",
    "randomised": False,
    "stateful": False,
    "max_images": 4,
    "fingerprint": "0123456789abcdef",
}


class Scripted:
    """An endpoint that answers as it is told, and keeps what it was asked.

    Args:
        answers: Statuses or bodies of the first answers to `/answer`; then label 0 for all.
        about: What differs from `ABOUT`.
    """

    def __init__(self, *answers, headers=None, **about):
        self._answers, self._headers = list(answers), headers or {}
        self._about = ABOUT | about
        self.asked = []
        self.tokens = set()

    def application(self):
        routes = [
            Route("/", self._describe),
            Route("/answer", self._answer, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def _describe(self, request):
        self.tokens.add(request.headers.get("authorization"))
        return JSONResponse(self._about)

    async def _answer(self, request):
        self.tokens.add(request.headers.get("authorization"))
        content = await request.json()
        count = content["shape"][0]
        self.asked.append((time.monotonic(), count))
        said = self._answers.pop(0) if self._answers else None
        if isinstance(said, int):
            return Response(b'{"error": "busy"}', said, self._headers)
        if isinstance(said, bytes):
            return Response(said, 200)
        return JSONResponse({"labels": [0] * count, "scores": None, **(said or {})})


def body(images, /, **more):
    raw = np.ascontiguousarray(images, dtype="<f4").tobytes()
    words = {"images": base64.b64encode(raw).decode(), "shape": list(np.shape(images))}
    return json.dumps({**words, **more}).encode()


JSON = {"Content-Type": "application/json"}


class Caller:
    """Asks a server over one connection; without retries."""

    def __init__(self, url):
        self._url, self._pool = url, urllib3.PoolManager(retries=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.clear()

    def __call__(self, method, path, content=None, headers=JSON):
        """Status and JSON of the answer, which must be one line."""
        found = self._pool.request(method, self._url + path, body=content, headers=headers)
        assert b"\n" not in found.data
        return found.status, json.loads(found.data)

    def labels(self, images, **more):
        status, found = self("POST", "/answer", body(images, **more))
        assert status == 200, found
        return found


def grey(count, value=0.5):
    return torch.full((count, 1, 28, 28), value)
