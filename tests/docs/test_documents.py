"""The other documents cannot lie either: what they name exists, and the map of rooms is the one that is built."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pages
import pytest
import typer

from elm_agent import Settings
from elm_agent.cli.app import app

ROOT = Path(__file__).parents[2]
NAMES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "storage/README.md",
    "graphs/README.md",
    "examples/README.md",
]
DOCUMENTS = {name: (ROOT / name).read_text("utf-8") for name in NAMES}
NOT_SETTINGS = {"ELM_SETTINGS", "ELM_DEBUG", "ELM_TEST_PARITY", "ELM_TEST_POSTGRES"}

each_document = pytest.mark.parametrize("name", NAMES)


@each_document
def test_files_that_are_named_exist(name: str) -> None:
    """``a/b.py`` or ``a/`` in backticks is a path from the root, the package or the document's own folder."""
    roots = [ROOT, ROOT / "elm_agent", ROOT / "elm_agent" / "storage", (ROOT / name).parent]
    named = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", DOCUMENTS[name])
    paths = [
        path for path in named if "/" in path or path.endswith((".py", ".toml", ".ini", ".md", ".json", ".yaml"))
    ]
    ours = [path for path in paths if not path.startswith(".")]  # .venv/ and ./.elm come into being later
    assert [path for path in ours if not any((root / path).exists() for root in roots)] == []


@each_document
def test_commands_that_are_named_exist(name: str) -> None:
    root = typer.main.get_command(app)
    for line in re.findall(r"elm-agent ((?:[a-z]+ ?){1,2})", DOCUMENTS[name]):
        words = line.split()
        commands = getattr(root, "commands", {})
        assert words[0] in commands, line
        below = getattr(commands[words[0]], "commands", None)
        assert below is None or len(words) == 1 or words[1] in below, line


@each_document
def test_variables_that_are_named_are_settings(name: str) -> None:
    for variable in set(re.findall(r"\bELM_[A-Z_]+[A-Z]\b", DOCUMENTS[name])) - NOT_SETTINGS:
        model: object = Settings
        for part in variable.removeprefix("ELM_").lower().split("__"):
            fields = getattr(model, "model_fields", {})
            assert part in fields, variable
            model = fields[part].annotation


@each_document
def test_make_targets_that_are_named_exist(name: str) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make (\w+)", DOCUMENTS[name], re.MULTILINE)) <= targets


def test_the_settings_of_the_readme_are_settings() -> None:
    """The block that swaps parts is not run, since it needs a server; each of its settings is made."""
    [block] = [block for block in pages.blocks("README.md", "python") if block.left_out]
    calls = [node.value for node in ast.parse(block.code).body if isinstance(node, ast.Expr)]
    made = [ast.unparse(call) for call in calls if ast.unparse(call).startswith("Settings(")]
    assert len(made) >= 4
    for call in made:
        assert isinstance(eval(call, {"Settings": Settings}), Settings)  # noqa: S307 - our own README


def test_sections_of_the_method_that_the_code_names_exist() -> None:
    text = (ROOT / "docs" / "METHOD.md").read_text("utf-8")
    sections = set(re.findall(r"^## (\d)\.", text, re.MULTILINE))
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "elm_agent").rglob("*.py"))
    named = re.findall(r"METHOD (?:section )?(\d)", code)
    assert named
    assert set(named) <= sections


# --- the map of rooms -----------------------------------------------------------------------------------

ROWS = [
    [cell.strip() for cell in line.strip("| \n").split("|")]
    for line in DOCUMENTS["CONTRIBUTING.md"].split("## The rooms")[1].split("\n## ")[0].splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| layer"))
]


def rooms_of(cell: str) -> list[str]:
    return [name.rstrip("/").split("/")[0] for name in re.findall(r"`([\w./]+)`", cell)]


def test_every_room_is_on_the_map() -> None:
    built = {
        path.name
        for path in (ROOT / "elm_agent").iterdir()
        if not path.name.startswith("_") and (path.is_dir() or path.suffix == ".py")
    }
    drawn = [room for row in ROWS for cell in row[:2] for room in rooms_of(cell)]
    assert sorted(drawn) == sorted(built)


def test_every_room_of_storage_is_on_its_map() -> None:
    table = DOCUMENTS["CONTRIBUTING.md"].split("## The rooms of storage")[1].split("\n## ")[0]
    drawn = re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)
    built = [path.parent.name for path in (ROOT / "elm_agent" / "storage").glob("*/__init__.py")]
    assert sorted(drawn) == sorted(built)


def test_the_map_has_the_order_that_is_enforced() -> None:
    configured = (ROOT / "pyproject.toml").read_text("utf-8").split("layers = [")[1].split("]")[0]
    layers = [line.split(" | ") for line in re.findall(r'"([^"]+)"', configured)]
    depth = {room: number for number, layer in enumerate(layers) for room in layer}
    drawn = [room.removesuffix(".py") for row in ROWS for cell in row[:2] for room in rooms_of(cell)]
    assert [depth[room] for room in drawn] == sorted(depth[room] for room in drawn)


def test_a_library_is_spoken_to_by_the_room_on_the_map() -> None:
    imports: dict[str, set[str]] = {}
    for path in (ROOT / "elm_agent").rglob("*.py"):
        room = path.relative_to(ROOT / "elm_agent").parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                imports.setdefault(module.split(".")[0].replace("_", "-"), set()).add(room)
    for _, rooms, _, libraries in (row for row in ROWS if len(row) == 4 and row[3]):
        for library in libraries.split(", "):
            assert imports[library] - {"testing"} <= set(rooms_of(rooms)), library
