"""``elm-agent web``: a page to look into the bank and change its memories, until stopped."""

from __future__ import annotations

import socket
import webbrowser
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.opening import whole_bank
from elm_agent.cli.options import Shared

if TYPE_CHECKING:
    from elm_agent.settings import Settings
    from elm_agent.web.walls import Walls


def web(
    options: Shared,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen on; any but loopback needs --token-file.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="PORT", help="Port; 0 takes a free one.")
    ] = 8010,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="Tokens: one a line, then the namespaces it may see."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="A host name that the page may be asked for by; again for more."),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Change nothing from the page.")] = False,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
) -> None:
    """Show banks, memories, jobs and the ledger as a page, and change memories there.

    All namespaces of the bank, or with --namespace that one and those it shares, which are only read. It opens no
    model until somebody asks for one there. Ctrl-C or SIGTERM ends it.
    """
    from elm_agent.api.serving import address, listen, make_door, need, serve

    need("web", "starlette", "uvicorn", "jinja2")
    settings = options.load()
    door = make_door(host, token_file)
    out = options.output()
    with ExitStack() as closing:
        listening = closing.enter_context(listen(host, port))
        bank = closing.enter_context(whole_bank(settings, owns_index=False))
        from elm_agent.web.app import create_app

        app = create_app(
            bank,
            walls=_walls(options, settings, read_only=read_only),
            tokens=door.access,
            hosts=frozenset({"localhost", host.lower(), socket.gethostname().lower(), *(name or ())}),
            cookie=f"elm_session_{listening.getsockname()[1]}",  # a cookie is for all ports of its host
            undo_days=settings.eviction.undo_days,
            open_model=lambda: _model(settings, closing),
        )
        where = f"{address(listening)}/"

        def started() -> None:
            if out.json:
                out.event("serving", {"url": where})
            out.note(f"the page is at {where}; Ctrl-C stops")
            if open_:
                webbrowser.open(where)

        serve(app, listening, started=started)


def _walls(options: Shared, settings: Settings, *, read_only: bool) -> Walls:
    from elm_agent.web.walls import Walls

    own = None if options.namespace is None else frozenset({settings.namespace})
    seen = None if own is None else own | frozenset(settings.shared_namespaces)
    return Walls(seen=seen, changed=frozenset() if read_only else own)


def _model(settings: Settings, closing: ExitStack) -> Any:
    """The model of the settings with this library's own engine, whose embeddings are looked at; closed at the end."""
    from elm_agent.runtime import open_model

    model: Any = open_model(settings.changed(engine="native", vllm={"options": {}}))
    closing.callback(model.close)
    return model
