"""What the documentation site is made of is current. `make docs` builds it, and fails where a link leads nowhere."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pages
import pytest

from elm_agent.integrations.langgraph import RunContext
from elm_agent.records import Route


def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("concepts", pages.ROOT / "docs" / "images" / "concepts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", drawing().PICTURES)
def test_pictures_of_concepts_are_those_of_the_script(name: str) -> None:
    """To renew them: python docs/images/concepts.py"""
    assert (pages.ROOT / "docs" / "images" / name).read_text("utf-8") == drawing().PICTURES[name]()


def test_the_context_is_the_one_that_is_read() -> None:
    table = pages.text_of("docs/langgraph.md").split("## Settings of one run")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(RunContext.__annotations__)


def test_the_routes_are_those_there_are() -> None:
    table = pages.text_of("docs/concepts.md").split("| route |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(Route)
