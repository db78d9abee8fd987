"""``python -m elm_agent.integrations.langgraph.draw README.md``: put the current picture between its two marks."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from elm_agent.errors import InputError
from elm_agent.integrations.langgraph.graph import draw_graph

_MARKS = re.compile(r"(<!-- graph: begin[^>]*-->\n).*?(<!-- graph: end -->)", re.DOTALL)


def redraw(path: Path) -> None:
    """Replace what stands between ``<!-- graph: begin -->`` and ``<!-- graph: end -->``; ``InputError`` without."""
    text = path.read_text("utf-8")
    drawn, count = _MARKS.subn(lambda marks: f"{marks[1]}{draw_graph()}\n{marks[2]}", text)
    if count != 1:
        raise InputError(f"{path} has {count} pairs of graph marks: expected one")
    path.write_text(drawn, "utf-8")


if __name__ == "__main__":
    redraw(Path(sys.argv[1]))
