"""Runs an ASGI application on a socket: who may connect, the address, an orderly end. Knows no routes."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from elm_agent.api.access import Access, read_tokens
from elm_agent.api.guard import LOOPBACK, App
from elm_agent.errors import SettingsError

PATIENCE_SECONDS = 10  # for answers in hand, once the server is asked to stop


@dataclass(frozen=True, slots=True)
class Door:
    """Who may ask, and by which names the server may be called (None: any)."""

    access: Access
    hosts: frozenset[str] | None


def make_door(host: str, token_file: Path | None) -> Door:
    """The door of a server that listens on ``host``.

    Raises:
        SettingsError: others can reach it and no tokens are given, or the file of them is unusable.
    """
    if token_file is not None:
        return Door(read_tokens(token_file), None)  # a page that has its name point here has no token
    if not is_loopback(host):
        raise SettingsError(
            f"host {host[:100]!r} can be reached from other machines: name the tokens that may ask with --token-file "
            "FILE, one a line, or leave --host out"
        )
    return Door(Access(), LOOPBACK)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. A name other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def need(extra: str, *packages: str) -> None:
    """Raise ``SettingsError`` with the command to run when a package is missing; before anything slow is opened."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise SettingsError(f"this needs {', '.join(missing)}: run `pip install 'elm-agent[{extra}]'`")


def listen(host: str, port: int) -> socket.socket:
    """A socket that others can connect to from now on; port 0 takes a free one.

    Raises:
        SettingsError: the address is not this machine's, or somebody has it.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise SettingsError(
            f"nothing can listen on {host[:100]} port {port}: {error.strerror or error}; name another --host or "
            "--port"
        ) from None


def address(listening: socket.socket) -> str:
    """``http://HOST:PORT`` of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: App, listening: socket.socket, *, started: Callable[[], None] = lambda: None) -> None:
    """Serve until Ctrl-C or SIGTERM, which are raised again when all is closed.

    ``started`` is called once it serves.
    """
    import uvicorn

    class _Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=PATIENCE_SECONDS,
        timeout_keep_alive=30,
    )
    _Server(config).run(sockets=[listening])
