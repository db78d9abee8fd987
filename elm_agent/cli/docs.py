"""``python -m elm_agent.cli.docs``: every ``--help`` page as docs/cli.md, so that the page cannot go stale."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from elm_agent.cli.app import EXIT_CODES, app

TARGET = Path("docs/cli.md")
WIDTH = 100

HEAD = """# The command line

Every command of `elm-agent` with its options, as `--help` shows them. This page is made by
`python -m elm_agent.cli.docs`; a test compares it with the program.

The shared options (`--home`, `--namespace`, `--model`, `--settings`, `--database-url`, `--log-format`, `--json`) may
stand before or after the command; the later word wins. With `--json` standard output carries one JSON document and
nothing else; `run`, `worker`, `demo` and all of `bench` but `report` write one JSON object a line, each with its
`event`, and `--log-format json` does so with log lines on standard error: see [observability](observability.md). A
failure is one sentence on standard error, with `--json` it is `{"error": {"type", "message", "exit_code"}}` on
standard output. `ELM_DEBUG=1` adds the traceback. `elm-agent --install-completion` switches on completion for your
shell.
"""


def page() -> str:
    """The whole page, Markdown."""
    codes = "\n".join(f"| {code} | {text} |" for code, text in EXIT_CODES.items())
    helps = "\n".join(f"## {path}\n\n```text\n{text}\n```\n" for path, text in _pages())
    return f"{HEAD}\n| exit code | meaning |\n| --- | --- |\n{codes}\n\n{helps}"


def _pages() -> Iterator[tuple[str, str]]:
    root = typer.main.get_command(app)
    yield from _walk(root.make_context("elm-agent", [], resilient_parsing=True))


def _walk(context: Any) -> Iterator[tuple[str, str]]:
    context.terminal_width = context.max_content_width = WIDTH
    yield context.command_path, "\n".join(line.rstrip() for line in context.get_help().strip().splitlines())
    for name, command in getattr(context.command, "commands", {}).items():
        yield from _walk(command.make_context(name, [], parent=context, resilient_parsing=True))


def main(arguments: list[str]) -> int:
    """Write the page; with ``--check`` only compare, 1 when it is stale."""
    if arguments == ["--check"]:
        return int(not TARGET.exists() or TARGET.read_text("utf-8") != page())
    TARGET.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
