"""Runs an application on a port until it is interrupted."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette

from benchmark.errors import SpecError

_PATIENCE = 10  # seconds that answers in flight have when the server ends


def listening(host: str, port: int) -> socket.socket:
    """Open a port; 0 takes any that is free.

    Raises:
        SpecError: If it cannot be opened.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"cannot listen on {host} port {port}: {reason}") from None


def address(door: socket.socket) -> str:
    """Write where a server listens, as a URL."""
    host, port = door.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(application: Starlette, door: socket.socket) -> None:
    """Serve until Ctrl-C or a signal to end; requests in flight are answered first."""
    server = make(application)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends as by Ctrl-C
    try:
        with suppress(KeyboardInterrupt):
            server.run(sockets=[door])
    finally:
        signal.signal(signal.SIGTERM, before)


def make(application: Starlette) -> uvicorn.Server:
    """Make a server that logs errors only."""
    settings = uvicorn.Config(
        application,
        log_level="error",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE,
    )
    return uvicorn.Server(settings)
