"""docs/web.md: its pictures are there and small, its views are those of the page."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "web.md").read_text("utf-8")
MOST_BYTES = 150_000


def test_pictures_are_there_and_small() -> None:
    named = re.findall(r"!\[[^]]+\]\((images/[\w-]+\.png)\)", TEXT)
    views = {file.stem for file in (ROOT / "elm_agent" / "web" / "templates").glob("*.html")}
    assert views - {"base", "parts", "problem"} <= {Path(name).stem.removeprefix("web-") for name in named}
    for name in named:
        picture = ROOT / "docs" / name
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert picture.stat().st_size < MOST_BYTES, name


def test_limits_are_those_of_the_page() -> None:
    from elm_agent.storage.browsing.flow import MOST
    from elm_agent.web import forms, guard, sessions
    from elm_agent.web.views import map_, memories, vectors

    assert f"addresses over {guard.LONGEST_QUERY:,} characters and forms over {forms.MOST_BYTES:,} bytes" in TEXT
    assert f"{sessions.LIFE_SECONDS // 3600} hours" in TEXT
    assert f"up to {map_.MOST:,} active memories" in TEXT
    assert f"the newest {MOST:,} uses" in TEXT
    assert f"in at most {vectors.MOST_TOKENS} tokens" in TEXT
    assert len(memories.ORDERS) == 8
    assert "eight orders, pages of 50" in TEXT
