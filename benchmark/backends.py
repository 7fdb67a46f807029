"""Who does the work: processes or threads of this machine, or a Dask or Ray cluster."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from benchmark.errors import SpecError, StoreError, suggestion

_MODULES = {"dask": "distributed", "ray": "ray"}  # what an extra installs
BACKENDS = ("loky", "threading", *_MODULES)
_PATIENCE = 60  # seconds to wait for the workers of a Dask cluster

Calls = Iterable[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Workers:
    """Who does the work; no choice changes a result.

    Attributes:
        jobs: Pieces of work at a time; None means one a core, one on a GPU, all of a cluster.
        backend: One of `BACKENDS`.
        scheduler: Address of a Dask scheduler, None for workers on this machine.
        address: Address of a Ray cluster, None for workers on this machine.
        devices: Devices, one for each piece of work at a time; empty for that of the
            surroundings.

    Raises:
        SpecError: If the choices do not fit each other, or the backend is not installed.
    """

    jobs: int | None = None
    backend: str = "loky"
    scheduler: str | None = None
    address: str | None = None
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise SpecError(
                f"unknown backend '{self.backend}'. {suggestion(self.backend, BACKENDS)}"
            )
        misfits = {
            "--scheduler goes with --backend dask": self.scheduler and self.backend != "dask",
            "--address goes with --backend ray": self.address and self.backend != "ray",
            "--jobs does not go with --scheduler: the Dask cluster has as many as it was started "
            "with": self.scheduler and self.jobs,
            "--jobs does not go with --devices: a device named twice has two": self.devices
            and self.jobs,
            f"--devices does not go with --backend {self.backend}: say which devices a worker has "
            "where it is started": self.devices and self.elsewhere,
        }
        for message, holds in misfits.items():
            if holds:
                raise SpecError(message)
        module = _MODULES.get(self.backend)
        if module and importlib.util.find_spec(module) is None:
            raise SpecError(
                f"backend '{self.backend}' is not installed: "
                f"pip install 'querybench[{self.backend}]'"
            )

    @property
    def elsewhere(self) -> bool:
        """Workers may have started in another folder, on another machine."""
        return self.backend in _MODULES

    def at_a_time(self, device: str) -> int:
        """Pieces of work at a time on this machine."""
        usual = joblib.cpu_count() if torch.device(device).type == "cpu" else 1
        return len(self.devices) or self.jobs or usual

    @contextmanager
    def pool(self, device: str, most: int) -> Iterator[Pool]:
        """Start workers, and end them with the context if they were started for it.

        Args:
            device: Device they compute on.
            most: Pieces of work there are.

        Raises:
            StoreError: If a cluster does not answer.
        """
        jobs = min(self.at_a_time(device), most)
        with ExitStack() as until_the_end:
            if self.backend == "dask":
                yield _dask(self.scheduler, jobs, until_the_end)
            elif self.backend == "ray":
                yield _ray(self.address, self.jobs, jobs, until_the_end)
            else:
                yield Pool(jobs, (TerminatedWorkerError,), {"backend": self.backend})


@dataclass(frozen=True)
class Pool:
    """Workers that are there.

    Attributes:
        jobs: Pieces of work at a time, -1 for as many as the cluster takes.
        lost: Errors that mean that a worker died.
        settings: What joblib calls the backend.
        ahead: Pieces of work handed out before workers ask for them.
        returns: How joblib returns results.
    """

    jobs: int
    lost: tuple[type[BaseException], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    ahead: str = "2*n_jobs"
    returns: str = "generator_unordered"

    def run(self, calls: Calls) -> Iterator[Any]:
        """Make calls; their results come as they are finished, on Ray all at the end.

        Raises:
            StoreError: If a cluster has no workers.
        """
        with joblib.parallel_config(**self.settings):
            runner = joblib.Parallel(
                n_jobs=self.jobs,
                return_as=self.returns,
                batch_size=1,
                pre_dispatch=self.ahead,
            )
            try:
                yield from runner(calls)
            except TimeoutError as error:  # a cluster without workers
                raise _silent("worker", None, error) from None


def _dask(scheduler: str | None, jobs: int, until_the_end: ExitStack) -> Pool:
    distributed: Any = importlib.import_module("distributed")
    where: Any = scheduler
    if not scheduler:
        local = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": "ERROR"}
        where = until_the_end.enter_context(distributed.LocalCluster(n_workers=jobs, **local))
    try:
        client = until_the_end.enter_context(distributed.Client(where))
    except (OSError, ValueError) as error:
        raise _silent("Dask scheduler", scheduler, error) from None
    backend: Any = importlib.import_module("benchmark.dask_backend").DaskBackend
    settings = {"backend": backend(client=client, wait_for_workers_timeout=_PATIENCE)}
    # All at once, so that workers that join later find something to do.
    return Pool(-1, (distributed.scheduler.KilledWorker,), settings, ahead="all")


def _ray(address: str | None, asked: int | None, jobs: int, until_the_end: ExitStack) -> Pool:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark reports to nobody
    ray: Any = importlib.import_module("ray")
    # "local", for else it would join a cluster that somebody happens to run here.
    own = {"address": "local", "num_cpus": jobs, "include_dashboard": False}
    where = {"address": address} if address else own
    try:
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise _silent("Ray cluster", address, error) from None
    until_the_end.callback(ray.shutdown)
    importlib.import_module("ray.util.joblib").register_ray()
    lost = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError)
    # Its joblib backend knows no results before the last.
    processes = (asked or -1) if address else jobs
    return Pool(processes, lost, {"backend": "ray"}, returns="list")


def _silent(who: str, address: str | None, error: Exception) -> StoreError:
    reason = " ".join(str(error).split())
    return StoreError(f"no {who} answers at '{address or 'the cluster'}': {reason}")
