"""Files of every kind that a bank has are damaged one at a time, and an agent in a process of its own meets each.

``PYTHONPATH=tests:tests/faults python tests/faults/flipped_files.py --flips 500`` prints a table by kind of file.
What the agent gets to see is ``flipped_homes``.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from flipped_homes import KINDS, S3_KIND, Objects, Seen, gather, make_homes
from forks import forks
from s3 import ENVIRONMENT, NoServer, temporary_s3

RARE = {"chroma"}  # its child process takes seconds
PATIENCE = 120.0  # seconds within which an agent is done


def damaged(data: bytes, dice: random.Random) -> tuple[bytes, str]:
    """With a bit flipped, the end cut off, or a piece overwritten; and what was done."""
    how = dice.choice(("flip", "flip", "flip", "cut", "zeros"))
    at = dice.randrange(len(data)) if data else 0
    if not data:
        return b"x", "grown"
    if how == "flip":
        return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :], f"flip at {at}"
    if how == "cut":
        return data[:at], f"cut at {at}"
    return data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :], f"zeros at {at}"


def visit(root: Path, how: str) -> tuple[int, Seen | None]:
    """The exit status of an agent's process on this home, and what it saw."""
    context = forks()
    heard, said = context.Pipe(duplex=False)
    process = context.Process(target=_visit, args=(root, how, said))
    process.start()
    said.close()
    seen: Seen | None = None
    try:
        if heard.poll(PATIENCE):
            seen = heard.recv()
    except EOFError:
        seen = None
    process.join(PATIENCE if seen else 1)
    if process.exitcode is None:  # it hangs
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode, seen


def _visit(root: Path, how: str, said: Connection) -> None:
    os.environ.update(ENVIRONMENT)
    try:
        said.send(gather(root, how))
    except Exception:  # noqa: BLE001 - whatever is not an ElmError is what is looked for
        said.send(Seen(raised=traceback.format_exc(limit=-4)))


@dataclass
class Flips:
    """What came of damage to one kind of file."""

    flips: int = 0
    found: int = 0
    harmless: int = 0
    unnoticed: int = 0  # something else was served, and nobody said so
    crashed: int = 0  # ended by a signal, or hung
    tracebacks: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.unnoticed or self.crashed or self.tracebacks)

    def count(self, kind: str, done: str, status: int, seen: Seen | None, truth: Seen) -> None:
        self.flips += 1
        if status or seen is None:
            self.crashed += 1
            self.said.append(f"{done}: ended with {status}")
        elif seen.raised is not None:
            self.tracebacks += 1
            self.said.append(f"{done}: {seen.raised}")
        elif seen.found or seen.refused:
            self.found += 1
        elif seen.read == truth.read or kind in ("settings", "profile"):  # another value of a setting is a setting
            self.harmless += 1
        else:
            differ = [name for name, value in truth.read.items() if seen.read.get(name) != value]
            self.unnoticed += 1
            self.said.append(f"{done}: {differ[:3]} changed, and nobody said so")


class Campaign:
    """Homes below ``folder`` that are copied, damaged and visited. ``objects``: None where there is no S3 server."""

    def __init__(self, folder: Path, dice: random.Random, objects: Objects | None) -> None:
        self._reference, self._scratch = folder / "reference", folder / "scratch"
        self._dice = dice
        self._objects = objects
        make_homes(self._reference, objects)
        self._truths: dict[str, Seen] = {}
        self.flips = {kind: Flips() for kind in [*KINDS, *([S3_KIND] if objects else [])]}

    def only(self, kind: str) -> Campaign:
        """Damage no other kind of file."""
        self.flips = {kind: Flips()}
        return self

    def run(self, count: int) -> dict[str, Flips]:
        """Damage ``count`` files, each kind about as often."""
        rare = [kind for kind in self.flips if kind in RARE]
        common = [kind for kind in self.flips if kind not in RARE] or rare
        kinds = rare * max(1, count // 20)
        kinds += [common[n % len(common)] for n in range(count - len(kinds))]
        self._dice.shuffle(kinds)
        for n, kind in enumerate(kinds, 1):
            self._flip(kind)
            if n % 25 == 0:
                bad = [text for one in self.flips.values() for text in one.said]
                print(f"{n} of {len(kinds)}, bad: {bad or 'none'}", file=sys.stderr, flush=True)
        return self.flips

    def _flip(self, kind: str) -> None:
        how = "s3" if kind == S3_KIND else KINDS[kind][1]
        truth = self._truth(how)
        self._copy(how)
        done = f"{kind} {self._damage(kind)}"
        status, seen = visit(self._scratch, how)
        self.flips[kind].count(kind, done, status, seen, truth)

    def _truth(self, how: str) -> Seen:
        """What is seen of a whole home."""
        if how not in self._truths:
            self._copy(how)
            status, truth = visit(self._scratch, how)
            assert status == 0, how
            assert truth is not None
            assert (truth.raised, truth.found, truth.refused) == (None, [], []), how
            self._truths[how] = truth
        return self._truths[how]

    def _copy(self, how: str) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        shutil.copytree(self._reference / how, self._scratch / how)
        if how == "s3":
            assert self._objects is not None
            self._copies = self._objects.fresh(self._scratch)

    def _damage(self, kind: str) -> str:
        """Of one file of this kind; what was done to it."""
        said = ""

        def change(data: bytes) -> bytes:
            nonlocal said
            data, said = damaged(data, self._dice)
            return data

        if kind == S3_KIND:
            assert self._objects is not None
            path = self._dice.choice(self._copies)
            self._objects.change(path, change)
            return f"{path}: {said}"
        files = sorted(path for path in self._scratch.glob(KINDS[kind][0]) if path.is_file())
        file = self._dice.choice(files)
        file.write_bytes(change(file.read_bytes()))
        return f"{file.relative_to(self._scratch)}: {said}"


def table(flips: dict[str, Flips]) -> str:
    columns = ("flips", "found", "harmless", "unnoticed", "crashed", "tracebacks")
    lines = [f"{'kind of file':<20}" + "".join(f"{name:>12}" for name in columns)]
    total: Counter[str] = Counter()
    for kind, one in flips.items():
        lines.append(f"{kind:<20}" + "".join(f"{getattr(one, name):>12}" for name in columns))
        total.update({name: getattr(one, name) for name in columns})
    lines.append(f"{'all':<20}" + "".join(f"{total[name]:>12}" for name in columns))
    return "\n".join(lines + [text for one in flips.values() for text in one.said])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="this kind of file")
    args = parser.parse_args()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        os.environ.update(ENVIRONMENT)
        try:
            objects: Objects | None = Objects(held.enter_context(temporary_s3()))
        except NoServer as error:
            print(f"without objects in S3: {error}", file=sys.stderr)
            objects = None
        campaign = Campaign(folder, random.Random(args.seed), objects)
        flips = (campaign.only(args.only) if args.only else campaign).run(args.flips)
    print(table(flips))
    return 0 if all(one.clean for one in flips.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
