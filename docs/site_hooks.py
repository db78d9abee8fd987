"""The documentation site: documents that lie outside docs/ become pages too, and so does the code of examples.

Links are written as GitHub reads them, from file to file of the repository; here they are turned into those of the
site. What leads nowhere is left as it is, and the strict build fails by it. Knows nothing of what the pages say.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from properdocs.exceptions import PluginError
from properdocs.structure.files import File, Files
from properdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("CHANGELOG.md", "CONTRIBUTING.md", "graphs/README.md", "storage/README.md", "examples/**/README.md")
CODE = ("examples/**/*.py", "graphs/*.py")
FRONT = "index.md"
"""What the site shows where GitHub shows README.md."""

_FENCE = re.compile(r"^\s*```", re.MULTILINE)
_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_LOADED = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//|class="?mermaid\b"""
)
"""What a browser would fetch from elsewhere; the theme takes the program that draws Mermaid from a foreign server."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add the documents and the code that lie elsewhere."""
    for name in outside():
        path = ROOT / name
        if name.endswith(".md"):
            files.append(File.generated(config, name, abs_src_path=str(path)))
        else:
            text = f"# {path.name}\n\n```python\n{path.read_text('utf-8')}```\n"
            files.append(File.generated(config, page_of(name), content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    here = page.file.src_uri
    source = here if page.file.generated_by else posixpath.join("docs", here)

    def relinked(link: re.Match[str]) -> str:
        target = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1])))
        if files.get_file_from_path(target) is None:
            return link[0]
        return f"]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{link[2] or ''})"

    parts = _FENCE.split(markdown)  # every second one is code
    for number in range(0, len(parts), 2):
        parts[number] = _LINK.sub(relinked, parts[number])
    fences = [*_FENCE.findall(markdown), ""]
    return "".join(part + fence for part, fence in zip(parts, fences, strict=True))


def on_post_build(*, config: Any) -> None:
    """Refuse a site that would load anything from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if found := _LOADED.search(path.read_text("utf-8")):
            raise PluginError(f"{path} loads something from elsewhere: {found[0][:200]}")


def outside() -> Iterator[str]:
    """What lies outside docs/ and is on the site, as paths in the repository."""
    for pattern in (*DOCUMENTS, *CODE):
        yield from sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def site_path(path: str) -> str:
    """Where a file or folder of the repository is on the site."""
    if path == "README.md":
        return FRONT
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return page_of(path) if (ROOT / path).is_file() else posixpath.join(path, "README.md")


def page_of(path: str) -> str:
    """The page of a file: code is shown on a page of its own."""
    return f"{path}.md" if path.endswith(".py") else path
