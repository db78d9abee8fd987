"""Draws the pictures of docs/concepts.md: `python docs/images/concepts.py` writes them, a test keeps them current.

Each is one SVG with a ground of its own, light or dark as the reader's system is, so that it can be read on any page.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1f2933; text-anchor: middle; }
  .small { font-size: 12px; fill: #52606d; }
  .left { text-anchor: start; }
  .right { text-anchor: end; }
  .ground { fill: #fbfcfd; stroke: #d5dbe1; }
  .box { fill: #ffffff; stroke: #7b8794; stroke-width: 1.5; }
  .kept { fill: #d9f2ec; stroke: #0f766e; stroke-width: 1.5; }
  .frozen { fill: #e6eaf0; stroke: #52606d; stroke-width: 1.5; }
  .gone { fill: #f6e3e3; stroke: #a94442; stroke-width: 1.5; }
  .line { fill: none; stroke: #52606d; stroke-width: 1.5; marker-end: url(#tip); }
  .later { stroke-dasharray: 5 4; }
  .tip { fill: #52606d; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e9ef; }
    .small { fill: #a9b4c0; }
    .ground { fill: #1b2026; stroke: #3a434d; }
    .box { fill: #262d35; stroke: #8b97a4; }
    .kept { fill: #12403b; stroke: #2dd4bf; }
    .frozen { fill: #323b46; stroke: #a9b4c0; }
    .gone { fill: #43262a; stroke: #e08585; }
    .line { stroke: #a9b4c0; }
    .tip { fill: #a9b4c0; }
  }
"""


def picture(width: int, height: int, title: str, *parts: str) -> str:
    """A whole SVG; ``title`` is what a screen reader says."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="ground" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        *parts,
        "</svg>\n",
    ])  # fmt: skip


def box(x: int, y: int, width: int, *lines: str, kind: str = "box", height: int = 44) -> str:
    """A box with its top left corner at (x, y); the first line in full size, the others small."""
    middle, top = x + width / 2, y + height / 2 + 5 - 8 * (len(lines) - 1)
    said = "".join(
        text(middle, top + 17 * number, line, kind="small" if number else "") for number, line in enumerate(lines)
    )
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>{said}'


def text(x: float, y: float, line: str, *, kind: str = "small") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(line)}</text>'


def arrow(*points: tuple[int, int], later: bool = False) -> str:
    """A line through the points, with a tip at the last. ``later``: dashed, for what happens in the background."""
    path = "L".join(f"{x} {y}" for x, y in points)
    return f'<path class="line{" later" if later else ""}" d="M{path}"/>'


def cells(x: int, y: int, count: int, *, kind: str, width: int = 14) -> str:
    """A row of vectors."""
    return "".join(
        f'<rect class="{kind}" x="{x + number * (width + 4)}" y="{y}" width="{width}" height="30" rx="3"/>'
        for number in range(count)
    )


def memory() -> str:
    return picture(
        760,
        250,
        "A memory is rows of embeddings that are read before the question",
        text(20, 28, "a soft prompt: trained", kind="small left"),
        cells(20, 38, 20, kind="kept"),
        text(390, 28, "the question: its own embeddings", kind="small left"),
        cells(390, 38, 9, kind="box"),
        text(20, 92, "20 rows, each as wide as the model's embeddings", kind="small left"),
        arrow((200, 102), (200, 128)),
        arrow((470, 78), (470, 128)),
        box(20, 132, 534, "the language model", "frozen: no weight ever changes", kind="frozen", height=52),
        arrow((554, 158), (606, 158)),
        box(610, 136, 130, "an answer"),
        arrow((675, 184), (675, 222), (110, 222), (110, 190), later=True),
        text(390, 214, "learning: the majority of its own answers is the reward, and only the memory's rows change"),
    )


def answering() -> str:
    return picture(
        760,
        300,
        "One question: retrieve, answer with and without the memory, verify and route, consolidate later",
        box(20, 78, 96, "question"),
        arrow((116, 100), (148, 100)),
        box(152, 78, 122, "retrieve", "nearest memory"),
        arrow((274, 92), (312, 56)),
        arrow((274, 108), (312, 146)),
        box(316, 30, 164, "with the memory", "one row of a batch", kind="kept"),
        box(316, 126, 164, "without: zero-shot", "another row of it"),
        arrow((480, 56), (518, 92)),
        arrow((480, 146), (518, 108)),
        box(522, 78, 122, "route", "verifier if unequal"),
        arrow((644, 100), (676, 100)),
        box(680, 78, 64, "answer"),
        arrow((583, 122), (583, 206), later=True),
        box(502, 210, 162, "consolidate", "one job row, no waiting"),
        arrow((502, 232), (466, 232), later=True),
        box(300, 210, 162, "worker", "trains, gates, publishes"),
        arrow((300, 232), (266, 232), later=True),
        box(152, 210, 110, "memory", "for the next one", kind="kept"),
        arrow((213, 210), (213, 126), later=True),
        text(380, 284, "solid: while you wait; dashed: in the background"),
    )


def write_order() -> str:
    steps = (
        ("1 lease the job", "with a fence", "nothing was done"),
        ("2 a temporary file", "tensor, synced", "a .part file"),
        ("3 durable tensor", "named by its hash", "an unnamed file"),
        ("4 one transaction", "this publishes it", "all of it, or nothing"),
        ("5 feed the index", "from the outbox", "it is fed again"),
    )
    parts = [text(20, 30, "a crash after it leaves:", kind="small left")]
    for number, (name, more, left) in enumerate(steps):
        x = 20 + number * 146
        parts.append(box(x, 76, 136, name, more, kind="kept" if number == 3 else "box", height=50))
        parts.append(text(x + 68, 58, left))
        if number:
            parts.append(arrow((x - 10, 101), (x - 1, 101)))
    rows = ("memory row", "both keys", "episode", "ledger event", "job done", "outbox row")
    parts.append(arrow((526, 126), (526, 158)))
    parts.append('<rect class="box" x="20" y="162" width="720" height="52" rx="6"/>')
    for number, row in enumerate(rows):
        parts.append(box(30 + number * 118, 171, 110, row, kind="kept", height=34))
    return picture(760, 232, "The order of writing, and what a crash after each step leaves", *parts)


def states() -> str:
    return picture(
        760,
        300,
        "States of a memory: candidate, active, quarantined, retired, purged",
        box(20, 40, 92, "learned"),
        arrow((112, 62), (206, 62)),
        text(159, 54, "admitted"),
        box(210, 36, 130, "active", "is retrieved", kind="kept", height=52),
        arrow((66, 84), (66, 176)),
        text(72, 132, "not admitted", kind="small left"),
        box(20, 180, 130, "candidate", "restorable", height=52),
        arrow((140, 180), (226, 92)),
        text(128, 148, "restore"),
        arrow((256, 180), (256, 92)),
        text(250, 160, "restore", kind="small right"),
        arrow((300, 88), (300, 176)),
        text(306, 136, "review, doctor, harm", kind="small left"),
        box(225, 180, 130, "quarantined", "restorable", height=52),
        arrow((340, 54), (476, 54)),
        text(408, 46, "evict"),
        arrow((476, 74), (344, 74)),
        text(408, 90, "restore"),
        box(480, 36, 130, "retired", "restorable", height=52),
        arrow((355, 206), (520, 206), (520, 92)),
        text(440, 198, "evict"),
        arrow((610, 62), (676, 62), (676, 176)),
        text(668, 124, "undo window", kind="small right"),
        text(668, 140, "is over", kind="small right"),
        box(611, 180, 130, "purged", "a tombstone", kind="gone", height=52),
        text(380, 274, "purge and forget lead to purged from every state; nothing leads out of it"),
    )


PICTURES: dict[str, Callable[[], str]] = {
    "concept-memory.svg": memory,
    "concept-answer.svg": answering,
    "concept-write-order.svg": write_order,
    "concept-states.svg": states,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw(), "utf-8")
