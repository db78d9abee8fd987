"""The documents of the repository and their blocks of code. Reads them; runs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATTERNS = ("*.md", "docs/**/*.md", "examples/**/*.md", "graphs/*.md", "storage/*.md")
NAMES = sorted({path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in ROOT.glob(pattern)})
"""Paths from the root."""

_FENCE = re.compile(r"^( *)(`{3,})[ \t]*([^\n`]*)\n(.*?)^\1\2[ \t]*$", re.DOTALL | re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: (\S[^\n]*) -->\s*\Z")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. ``left_out``: why it is not run, in the comment above it; None: it is."""

    document: str
    line: int
    language: str
    code: str
    left_out: str | None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """Commands, those that go on in the next line made one."""
        return [line for line in self.code.replace("\\\n", "").splitlines() if line.strip()]


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(name: str, *languages: str) -> list[Block]:
    """Blocks of these languages, or all."""
    text = text_of(name)
    found = []
    for fence in _FENCE.finditer(text):
        why = _NOT_RUN.search(text, 0, fence.start())
        line = text.count("\n", 0, fence.start()) + 1
        code = re.sub(rf"^{fence[1]}", "", fence[4], flags=re.MULTILINE)
        found.append(Block(name, line, fence[3].strip(), code, why[1] if why else None))
    return [block for block in found if not languages or block.language in languages]


def prose_of(name: str) -> str:
    """The document without its blocks and its code in the line."""
    return re.sub(r"(`+)(?!`).+?\1(?!`)", "", _FENCE.sub("", text_of(name)))
