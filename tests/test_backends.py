"""Whoever does the work, the tables are the same to the byte."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import command
import joblib
import pytest
import torch
from command import refused, tables
from support import refusal

from benchmark import api
from benchmark.backends import Workers
from benchmark.config import Config
from benchmark.devices import FreeDevices
from benchmark.errors import StoreError
from benchmark.loading import load_dataset, load_victim

bench = command.bench

REQUEST = ["--attacks", "square,still", "--defenses", "feature", "--images", "6", "--shard", "1"]
REQUEST += ["--queries", "12", "--draws", "2", "--votes", "3"]
PATIENCE = 100  # seconds


def run(out, *args):
    """Run the tiny suite, with an attack of a plug-in, from the folder of `out`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("QUERYBENCH_")}
    words = [sys.executable, "-m", "benchmark.cli", "run", *REQUEST, "--out", out.name, *args]
    more = ["--plugin", "still.py"]
    return subprocess.run(
        words + more, check=False, cwd=out.parent, env=env, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with the plug-in, and the tables of a run in one process."""
    folder = tmp_path_factory.mktemp("backends")
    (folder / "still.py").write_text(command.ATTACK.format(name="still", line="pass"))
    done = run(folder / "one", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    return folder, tables(folder / "one")


def needs(name):
    module = {"dask": "distributed", "ray": "ray"}[name]
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"pip install 'querybench[{name}]'")


@pytest.mark.parametrize(
    "backend",
    ["loky", "threading", pytest.param("dask", marks=needs("dask")),
     pytest.param("ray", marks=needs("ray"))],
)  # fmt: skip
def test_two_workers_of_any_kind_give_the_tables_of_one(whole, backend):
    folder, expected = whole
    done = run(folder / backend, "--backend", backend, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert tables(folder / backend) == expected


def test_workers_that_outlive_a_run_write_where_the_next_one_is(tmp_path, monkeypatch):
    for name in ("first", "second"):  # in one process, which keeps its workers
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        more = {"images": 4, "shard": 2, "queries": 5, "jobs": 2, "out": "out"}
        assert len(api.run(attacks="square", **more)) == 1
        assert len(list(Path("out/shards").iterdir())) == 2


def test_a_list_of_devices_gives_the_tables_of_one(whole):
    folder, expected = whole
    done = run(folder / "devices", "--devices", "cpu,cpu", "--backend", "threading")
    assert done.returncode == 0, done.stderr
    assert tables(folder / "devices") == expected


def test_threads_have_victims_of_their_own():
    image = torch.zeros(1, 1, 28, 28)
    edited, asked = threading.Barrier(2, timeout=30), threading.Barrier(2, timeout=30)

    def answers(edit):
        victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
        site = victim.stages()[0]
        with torch.no_grad(), victim.edited({site: torch.zeros_like} if edit else {}):
            edited.wait()
            found = victim(image)
            asked.wait()
        return victim, load_dataset("mnist", Config()), found

    runner = joblib.Parallel(n_jobs=2, backend="threading", pre_dispatch="all", batch_size=1)
    (one, data, zeroed), (other, more, plain) = runner(
        joblib.delayed(answers)(edit) for edit in (True, False)
    )
    assert one is not other and data is not more
    alone = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    assert torch.equal(plain, alone(image)) and not torch.equal(zeroed, plain)


def test_a_device_is_lent_to_as_many_as_it_is_named(tmp_path):
    free = FreeDevices(("cpu", "cuda:0", "cpu"), tmp_path)
    held, most, lock = [], [], threading.Lock()

    def work():
        with free.taken() as device:
            with lock:
                held.append(device)
                most.append(sorted(held))
            time.sleep(0.01)
            with lock:
                held.remove(device)

    joblib.Parallel(n_jobs=5, backend="threading")(joblib.delayed(work)() for _ in range(20))
    assert len(most) == 20
    assert max(most, key=len) == ["cpu", "cpu", "cuda:0"]
    assert all(names.count("cpu") <= 2 and names.count("cuda:0") <= 1 for names in most)


def test_a_killed_process_gives_its_device_back(tmp_path):
    code = (
        "import sys, time, pathlib; from benchmark.devices import FreeDevices\n"
        "with FreeDevices(('cpu',), pathlib.Path(sys.argv[1])).taken():\n"
        "    print('taken', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "taken\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait(PATIENCE)
    with FreeDevices(("cpu",), tmp_path).taken() as device:
        assert device == "cpu"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--backend", "dusk"], "unknown backend 'dusk'. Did you mean: dask?"),
        (["--scheduler", "tcp://here:1"], "--scheduler goes with --backend dask"),
        (["--address", "auto"], "--address goes with --backend ray"),
        (["--backend", "dask", "--scheduler", "tcp://a:1", "--jobs", "2"], "--jobs does not go"),
        (["--devices", "cpu,cpu", "--jobs", "2"], "--jobs does not go with --devices"),
        (["--devices", "cpu", "--device", "cpu"], "--device does not go with --devices"),
        (["--devices", "cpu", "--backend", "ray"], "--devices does not go with --backend ray"),
        (["--devices", "cpu,gpu"], "device 'gpu' is not available. Allowed: auto, cpu"),
        (["--devices", ""], "device '' is not available"),
    ],
)
def test_options_that_do_not_fit_are_one_line(bench, args, message):
    assert message in refused(bench("run", "--attacks", "square", *args, "--out", "out"))
    assert not Path("out").exists()


def test_a_cpu_and_a_gpu_are_not_mixed(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    error = refused(bench("run", "--attacks", "square", "--devices", "cuda:1,cpu"))
    assert "--devices cuda:1,cpu: a CPU and a GPU give different results" in error


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_backend_that_is_not_installed_says_what_to_install(bench, monkeypatch, backend):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refused(bench("run", "--attacks", "square", "--backend", backend, "--out", "out"))
    assert f"backend '{backend}' is not installed: pip install 'querybench[{backend}]'" in error


@needs("dask")
def test_a_dask_scheduler_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setitem(dask_config()["distributed"]["comm"]["timeouts"], "connect", "0.2s")
    workers = Workers(backend="dask", scheduler="tcp://127.0.0.1:9")

    def start():
        with workers.pool("cpu", 2):
            pass

    error = refusal(StoreError, start)
    assert "no Dask scheduler answers at 'tcp://127.0.0.1:9'" in error


def dask_config():
    importlib.import_module("distributed")
    return importlib.import_module("dask").config.config


@needs("dask")
def test_joblib_is_told_that_dask_gave_work_up(monkeypatch):
    module = importlib.import_module("benchmark.dask_backend")
    sent = [Future(), Future()]
    waiting = iter(sent)
    monkeypatch.setattr(module.DaskDistributedBackend, "submit", lambda *_: next(waiting))
    backend, told = object.__new__(module.DaskBackend), []
    for _ in sent:
        backend.submit(None, told.append)
    killed = RuntimeError("killed")
    sent[0].set_exception(killed)
    sent[1].set_result("joblib hears of results otherwise")
    assert told == [killed]
    with pytest.raises(RuntimeError, match="killed"):
        backend.retrieve_result_callback(killed)
    assert backend.retrieve_result_callback(7) == 7
