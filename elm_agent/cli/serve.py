"""``elm-agent serve`` and ``elm-agent mcp``: the verbs for other programs, until stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elm_agent.cli.opening import opened_runtime
from elm_agent.cli.options import Shared
from elm_agent.errors import InputError

if TYPE_CHECKING:
    from socket import socket

    from elm_agent.api.guard import App
    from elm_agent.cli.output import Output

Host = Annotated[
    str, typer.Option("--host", metavar="HOST", help="Address to listen on; any but loopback needs --token-file.")
]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, metavar="PORT", help="Port; 0 takes a free one.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Bearer tokens: one a line, then the namespaces it may see."),
]
MostAsked = Annotated[int, typer.Option("--most-asked", min=1, metavar="N", help="Questions answered at once.")]


def serve(
    options: Shared,
    host: Host = "127.0.0.1",
    port: Port = 8011,
    token_file: TokenFile = None,
    most_asked: MostAsked = 64,
) -> None:
    """Serve ask, recall, why, feedback, memories and jobs over HTTP, and learn as the settings say.

    What it serves is described at /openapi.json. Ctrl-C or SIGTERM ends it when the answers in hand are told.
    """
    from elm_agent.api.serving import listen, make_door, need

    need("api", "fastapi", "uvicorn")
    door = make_door(host, token_file)
    with listen(host, port) as listening, opened_runtime(options) as runtime:
        from elm_agent.api.http import make_app

        app = make_app(runtime, access=door.access, hosts=door.hosts, most_asked=most_asked)
        _serve(options.output(), app, listening, "/v1")


def mcp(
    options: Shared,
    http: Annotated[
        bool, typer.Option("--http", help="Streamable HTTP instead of standard input and output.")
    ] = False,
    host: Host = "127.0.0.1",
    port: Port = 8012,
    token_file: TokenFile = None,
    most_asked: MostAsked = 64,
) -> None:
    """Serve ask, recall, why, feedback, memories and jobs as the tools of an MCP server.

    Over standard input and output, for the program that starts it, it knows the namespace of --namespace alone.
    """
    from elm_agent.api.serving import listen, make_door, need

    need("mcp", "mcp", "uvicorn")
    if not http:
        if token_file is not None:
            raise InputError("--token-file is for --http: over standard input and output there is nobody else")
        with opened_runtime(options) as runtime:
            from elm_agent.api.tools import make_server

            make_server(runtime, most_asked=most_asked).run("stdio")
        return
    door = make_door(host, token_file)
    with listen(host, port) as listening, opened_runtime(options) as runtime:
        from elm_agent.api.tools import make_mcp_app

        _serve(options.output(), make_mcp_app(runtime, door=door, most_asked=most_asked), listening, "/mcp")


def _serve(out: Output, app: App, listening: socket, path: str) -> None:
    from elm_agent.api.serving import address
    from elm_agent.api.serving import serve as serve_on

    url = address(listening) + path

    def started() -> None:
        if out.json:
            out.event("serving", {"url": url})
        else:
            out.note(f"serving {url}; Ctrl-C stops")

    serve_on(app, listening, started=started)
