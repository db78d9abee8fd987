"""Links lead somewhere, read as GitHub reads them: files and headings of the repository. Nothing is fetched."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pages
import pytest

_LINK = re.compile(r"!?\[[^]]*\]\(<?([^)\s>]+)>?\)")
_ADDRESS = re.compile(r"https?://[^\s)>\"'`|]+")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def anchors(name: str) -> set[str]:
    """What GitHub makes of the headings; the same heading again gets a number."""
    found: set[str] = set()
    for heading in _HEADING.findall(re.sub(r"^```.*?^```", "", pages.text_of(name), flags=re.DOTALL | re.MULTILINE)):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = next(end for end in ("", *(f"-{number}" for number in range(1, 100))) if slug + end not in found)
        found.add(slug + again)
    return found


@pytest.mark.parametrize("name", pages.NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for target in _LINK.findall(pages.prose_of(name)):
        if urlsplit(target).scheme:
            continue
        path, _, anchor = target.partition("#")
        place = (pages.ROOT / name).parent / path if path else pages.ROOT / name
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place.resolve().relative_to(pages.ROOT).as_posix()), target


@pytest.mark.parametrize("name", pages.NAMES)
def test_addresses_are_well_formed(name: str) -> None:
    """Those of other places are https, with a host that can be one."""
    for address in _ADDRESS.findall(pages.prose_of(name)):
        parts = urlsplit(address.rstrip(".,;:"))
        assert parts.scheme == "https", address
        assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), address


def test_every_document_of_the_site_is_reached() -> None:
    """Results are made by programs, so the menu does not name them: their page does."""
    listed = set(re.findall(r"\]\((results/[^)#]+\.md)\)", pages.text_of("docs/results.md")))
    assert listed >= {name.removeprefix("docs/") for name in pages.NAMES if name.startswith("docs/results/")}
