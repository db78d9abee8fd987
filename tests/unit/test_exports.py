"""What the package shows, and that looking at it stays light."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import elm_agent
from elm_agent import testing

HEAVY = ("torch", "transformers", "chromadb", "sqlalchemy", "alembic", "langgraph", "langchain_core", "matplotlib")


def test_every_public_name_is_there() -> None:
    assert sorted(elm_agent.__all__) == elm_agent.__all__
    for name in elm_agent.__all__:
        assert getattr(elm_agent, name).__module__.startswith("elm_agent."), name
    assert set(elm_agent._HOMES) == set(elm_agent.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = elm_agent.no_such_name


@pytest.mark.parametrize(
    "room", ["memory", "integrations.langgraph", "tasks", "verification", "testing", "training", "storage", "models"]
)
def test_rooms_show_what_they_promise(room: str) -> None:
    module = importlib.import_module(f"elm_agent.{room}")
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), name


def test_suites_are_named_by_what_they_judge_and_say_what_they_need() -> None:
    """A third party has the library and pytest; without pytest one sentence says so."""
    assert set(testing._HOMES) == set(testing.__all__)
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from elm_agent.testing import MemoryTensors, MemoryIndex\n"
        "try: from elm_agent.testing import KeyIndexSuite\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "KeyIndexSuite is run by pytest, which is not installed: `pip install pytest`\n"


@pytest.mark.parametrize("module", ["elm_agent", "elm_agent.settings", "elm_agent.protocols", "elm_agent.runtime"])
def test_importing_stays_light(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
