"""`bench serve` under concurrent clients: wrong answers, lost counts, refusals, images a second.

python tests/bench/serving.py --seconds 60 --clients 8
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from served import Caller, body, command_serving, grey

from benchmark.config import Config
from benchmark.data import Split
from benchmark.loading import load_dataset, load_victim

IMAGES, MOST = 500, 64
BAD = (  # a body and the status it is refused with
    (b"{", 400),
    (body(grey(1), images="/9j/4AAQSkZJRg=="), 400),  # the beginning of a JPEG file
    (body(grey(1, float("nan"))), 422),
    (body(grey(1), shape=[65, 1, 28, 28]), 422),
    (b"x" * 2_000_000, 413),
)


class Client(threading.Thread):
    """Asks random images, now and then something bad, and checks every answer."""

    def __init__(self, number, url, images, logits, until):
        super().__init__()
        self.own, self._url, self._until = f"client {number}", url, until
        self._images, self._logits = images, logits
        self._rng = np.random.default_rng(number)
        self.seen = Counter()

    def run(self):
        with Caller(self._url) as call:
            while time.monotonic() < self._until:
                try:
                    self._good(call) if self._rng.random() > 0.05 else self._bad(call)
                except Exception as error:  # noqa: BLE001 - it is counted
                    self.seen["broken"] += 1
                    print(f"{self.own}: {type(error).__name__}: {error}", file=sys.stderr)

    def _good(self, call):
        picks = self._rng.integers(0, IMAGES, int(self._rng.integers(1, MOST + 1)))
        found = call.labels(self._images[picks], client=self.own)
        wanted = self._logits[picks]
        self.seen["requests"] += 1
        self.seen["images"] += len(picks)
        scores = torch.tensor(found["scores"])
        near = torch.allclose(scores, wanted, rtol=1e-4, atol=1e-4)
        right = near and found["labels"] == wanted.argmax(1).tolist()
        self.seen["wrong"] += not right
        self.seen["lost"] += found["answered"] != self.seen["images"]

    def _bad(self, call):
        content, status = BAD[self._rng.integers(len(BAD))]
        found, _ = call("POST", "/answer", content)
        self.seen["refused"] += 1
        self.seen["not refused"] += found != status


def main(seconds, clients):
    data = load_dataset("mnist", Config())
    images = data.take(Split.EVAL, IMAGES).images
    with torch.no_grad():
        logits = load_victim("mnist-cnn", "mnist", Config(), "cpu")(images)
    with tempfile.TemporaryDirectory() as folder:
        given = ["--scores", "logits", "--max-images", str(MOST)]
        with command_serving(*given, cwd=folder) as server:
            until = time.monotonic() + seconds
            asking = [Client(n, server.url, images, logits, until) for n in range(clients)]
            for client in asking:
                client.start()
            for client in asking:
                client.join()
            with Caller(server.url) as call:
                _, counts = call("GET", "/count")
            code, said, errors = server.end(signal.SIGINT)
    seen = sum((client.seen for client in asking), Counter())
    own = {client.own: client.seen["images"] for client in asking}
    kept = counts == {"answered": seen["images"], "clients": own, "forgotten": 0}
    print(
        f"{clients} clients, {seconds:g} s: {seen['requests']:,} requests, {seen['images']:,} "
        f"images ({seen['images'] / seconds:,.0f} a second), {seen['wrong']} wrong answers, "
        f"{seen['broken']} broken connections, {seen['lost']} wrong counts, "
        f"totals {'equal' if kept else 'differ'}; "
        f"{seen['refused']:,} bad bodies, {seen['not refused']} not refused as they should; "
        f"exit code {code}, {said.strip()}{errors}"
    )
    faults = sum(seen[name] for name in ("wrong", "lost", "broken", "not refused"))
    return 0 if kept and not faults and not code else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    asked = parser.parse_args()
    sys.exit(main(asked.seconds, asked.clients))
