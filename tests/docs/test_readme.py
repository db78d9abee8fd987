"""The README cannot lie: its picture is the compiled graph, its targets are there."""

from __future__ import annotations

import re
from pathlib import Path

from elm_agent.integrations.langgraph import draw_graph

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_picture_is_the_compiled_graph() -> None:
    """To renew it: python -m elm_agent.integrations.langgraph.draw README.md"""
    picture = README.split("<!-- graph: begin")[1].split("-->\n", 1)[1].split("<!-- graph: end -->")[0]
    assert picture.strip() == draw_graph().strip()


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
