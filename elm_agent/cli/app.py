"""The assembly of ``elm-agent`` and its one error handler. No command lives here."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from elm_agent import __version__
from elm_agent.cli import (
    ask,
    audit,
    bank,
    bench,
    config,
    demo,
    doctor,
    encryption,
    feedback,
    forget,
    index,
    jobs,
    keys,
    maintain,
    memories,
    models,
    packs,
    review,
    run,
    serve,
    web,
    worker,
)
from elm_agent.cli.options import Shared, shared
from elm_agent.cli.output import clean, to_json
from elm_agent.errors import ElmError

EXIT_CODES = {
    0: "ok",
    1: "internal error",
    2: "bad input or settings",
    3: "not found",
    4: "storage",
    5: "model",
    6: "job",
    130: "interrupted (Ctrl-C or SIGTERM)",
    141: "the reader of standard output went away",
}
EPILOG = "Exit codes: " + "; ".join(f"{code} {text}" for code, text in EXIT_CODES.items()) + "."
HELP = "An agent on a local language model that learns from its own work, for good and without labels."


class Guarded(TyperGroup):
    """The root group: every failure of every command ends in ``_explain``, never in a traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        extra["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # half a character must not stop us
        with _terminable():
            sys.exit(self._status(words, *rest, **extra))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted("interrupted") from None
        except BrokenPipeError:
            raise typer.Exit(_without_reader()) from None

    def _status(self, words: list[str], *rest: Any, **extra: Any) -> int:
        try:
            status = super().main(words, *rest, **extra)
            sys.stdout.flush()
            return status if isinstance(status, int) else 0
        except BrokenPipeError:
            return _without_reader()
        except typer.TyperException as error:
            return _report(_usage(error), "UsageError", error.exit_code, words)
        except ElmError as error:
            return _report(str(error), type(error).__name__.lstrip("_"), error.exit_code, words)
        except Exception as error:  # noqa: BLE001 - the border of the program: said in one sentence, status 1
            text = f"unexpected {type(error).__name__}: {error} (ELM_DEBUG=1 shows the traceback)"
            return _report(text, type(error).__name__, 1, words)


class _Interrupted(ElmError):
    exit_code = 130


def _without_reader() -> int:
    """Nobody reads standard output any more: what is still to be flushed goes nowhere, quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _report(message: str, kind: str, code: int, words: list[str]) -> int:
    """One sentence: on standard error, or as JSON on standard output; the traceback only with ELM_DEBUG."""
    if os.environ.get("ELM_DEBUG"):
        traceback.print_exc()
    sentence = " ".join(clean(message).split())
    options = words[: words.index("--")] if "--" in words else words
    if "--json" in options:
        print(to_json({"error": {"type": kind, "message": sentence, "exit_code": code}}), flush=True)
    else:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    return code


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "elm-agent"
    return f"{error.format_message().rstrip('.')}; see `{path} --help`"


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command the way Ctrl-C does: what is open is closed, an unfinished job is given back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


app = typer.Typer(
    name="elm-agent",
    cls=Guarded,
    help=HELP,
    epilog=EPILOG,
    rich_markup_mode=None,  # plain help costs half the time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"elm-agent {__version__}")
        raise typer.Exit


@app.callback()
@shared
def _root(
    _: Shared,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Takes the options that stand before the command."""


app.command("ask")(shared(ask.ask))
app.command("feedback")(shared(feedback.feedback))
app.command("run")(shared(run.run))
app.command("worker")(shared(worker.worker))
app.command("serve")(shared(serve.serve))
app.command("mcp")(shared(serve.mcp))
app.command("web")(shared(web.web))
app.add_typer(jobs.app)
app.add_typer(memories.app)
app.add_typer(review.app)
app.command("maintain")(shared(maintain.maintain))
app.command("forget")(shared(forget.forget))
app.command("export")(shared(packs.export))
app.command("import")(shared(packs.import_))
app.add_typer(audit.app)
app.add_typer(encryption.app)
app.add_typer(keys.app)
app.add_typer(bank.app)
app.add_typer(index.app)
app.command("doctor")(shared(doctor.doctor))
app.add_typer(models.app)
app.add_typer(config.app)
app.add_typer(bench.app)
app.command("demo")(shared(demo.demo))
