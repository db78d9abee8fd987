"""Every block of code of every document runs, or says in the comment above it why not.

Blocks of a document run one after the other, as a reader would type them: its Python as one program on a tiny random
model, then its commands on the same bank.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import click
import pages
import pytest
import running
import typer
from pages import Block

from elm_agent import Settings
from elm_agent.cli.app import app

LANGUAGES = {"python", "console", "json", "toml", "text", "mermaid", ""}
COMMANDS = [block for name in pages.NAMES for block in pages.blocks(name, "console")]
DATA = [block for name in pages.NAMES for block in pages.blocks(name, "json", "toml")]
RUN = sorted({
    block.document for name in pages.NAMES for block in pages.blocks(name, "python", "console") if not block.left_out
})  # fmt: skip

PRINTED = {
    "README.md": ("'answer'", "'candidates'", "'job_id'", "'memory_id'", "'route'", "'similarity'"),
    "docs/admission.md": (
        r"^active ",
        r"^calibrated on 12 uses, helped 12, hurt 0: ",
        r"^memory_alone the memory is proven: utility 0\.8",
        r"^12$",
    ),
    "docs/http.md": (r"^(active|candidate) ", r"^no_memory$|^agreed$"),
    "docs/langchain.md": ("no_memory",),
    "docs/langgraph.md": ("job_", r"elm\.retrieved", r"elm\.consolidation\.queued"),
    "docs/observability.md": (r"elm\.train_step",),
    "docs/review.md": (
        r"^What is 6 times 8\? \d+ \{'\d+': \d",
        r"^\[\{'memory_id': 'mem_.*'outcome': 'approved', 'note': None\}\]$",
        "^candidate awaits review$",
        "^42 or 41$",
        "^memory 42 a person chose the memory's answer$",
        "^deferred 41$",
        "^wrong 42 helped$",
    ),
    "docs/utility.md": (r"^mem_", r"^memory the memory's answer was taken", "^perhaps_hurt None active None$"),
}
"""What a document's blocks have to print, as regular expressions, in this order."""

AFTERWARDS = {
    "README.md": "print(sorted(out))",
    "docs/backends.md": "assert [name for name in dir(TestMine) if name.startswith('test_')]",
    "docs/web.md": """
from starlette.testclient import TestClient
answer = TestClient(app, base_url="http://localhost:8010").get("/")
assert answer.status_code == 200 and "No namespace yet" in answer.text
bank.close()
""",
}
"""Code that looks at what a document made."""


@pytest.mark.parametrize("name", RUN)
def test_what_a_document_says_runs(
    name: str, short_environment: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    variables = short_environment | {"ELM_INDEX": "exact", "HOME": str(tmp_path), "COLUMNS": "200"}
    variables["ELM_MAX_NEW_TOKENS"] = "16"  # enough for what doubles answer
    code = "\n".join(block.code for block in pages.blocks(name, "python") if not block.left_out)
    printed = ""
    if code:
        code = code.replace('"smollm2-135m"', repr(str(tiny_model))) + AFTERWARDS.get(name, "")
        printed = running.run_code(code, name, tmp_path, variables)
    commands = [block for block in pages.blocks(name, "console") if not block.left_out]
    lines = [line for block in commands for line in block.lines]
    if lines:
        printed += running.run_commands(lines, tmp_path, variables)
    at = 0
    for expected in PRINTED.get(name, ()):
        found = re.compile(expected, re.MULTILINE).search(printed, at)
        assert found is not None, f"{expected!r} is not in {printed[at:]!r}"
        at = found.end()


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_are_commands(block: Block) -> None:
    """Also where they are not run: every command and every option exists, every extra can be installed."""
    extras = tomllib.loads(pages.text_of("pyproject.toml"))["project"]["optional-dependencies"]
    for line in block.lines:
        for extra in re.findall(r"elm-agent\[([\w-]+)\]|'\.\[([\w-]+)\]'", line):
            assert "".join(extra) in extras, line
        for told in re.split(r" {2,}(?=elm-agent )", line.strip()):  # several in a line, as a list of them
            if re.match(r"(\w+=\S+ )*elm-agent ", told):
                for said in alternatives(re.sub(r"^(\w+=\S+ )*elm-agent ", "", told)):
                    parse(shlex.split(said, comments=True))


@pytest.mark.parametrize("block", DATA, ids=str)
def test_data_can_be_read(block: Block) -> None:
    if block.language == "json":
        json.loads(block.code)
    else:
        assert Settings(**tomllib.loads(block.code))


@pytest.mark.parametrize("name", pages.NAMES)
def test_blocks_are_of_a_kind_that_is_looked_at(name: str) -> None:
    assert [str(block) for block in pages.blocks(name) if block.language not in LANGUAGES] == []


def alternatives(said: str) -> list[str]:
    """``memories pin ID | evict ID`` are two commands of ``memories``; what stands in brackets is optional."""
    first, *others = re.sub(r"\[(--[^]]*)\]", r"\1", said).split(" | ")
    group = first.split()[0]
    return [first, *(f"{group} {other}" for other in others)]


def parse(words: list[str]) -> None:
    """Raises where a command or an option is not one. Values are not looked at: many are the reader's."""
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command)
    while isinstance(command, click.Group):
        options = command.make_parser(context)
        options.allow_interspersed_args = False
        _, words, _ = options.parse_args(list(words))
        if not words:
            return
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, parent=context)
    command.make_parser(context).parse_args(list(words))
