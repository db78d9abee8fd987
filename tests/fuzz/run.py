"""Feed one target many malformed inputs: ``python tests/fuzz/run.py --target pack --runs 100000``.

With atheris (Linux) the inputs follow the coverage of our code; ``--engine random`` needs nothing more. Counts what
was accepted and refused; every crash and everything done outside the target's folder is an error, kept as a file
under ``--keep`` and told at the end. Prints one line of JSON; the exit status is 1 if there was any.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.dont_write_bytecode = True  # or a late import would write beside its source

INSTRUMENTED = ["elm_agent", "zipfile", "json", "tomllib", "base64", "fuzz_targets", "fuzz_edits"]


class Run:
    """One run: its folder, its target, its witness and its counts."""

    def __init__(self, name: str, folder: Path, keep: Path | None) -> None:
        from fuzz_targets import TARGETS, attempt
        from fuzz_watch import Watch, listing

        self.name, self.keep = name, keep
        self.work = folder / "work"
        self.work.mkdir()
        self._attempt, self._listing = attempt, listing
        self.target = TARGETS[name](self.work)
        with contextlib.suppress(AssertionError):
            attempt(self.target, b"")  # everything that is imported late is imported now
        self.watch = Watch(self.work)
        self.folder = folder
        self.before = self._outside()
        self.accepted = self.refused = 0
        self.crashes: dict[str, str] = {}
        self.started = time.monotonic()

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + len(self.crashes)

    def one(self, data: bytes) -> None:
        seen = len(self.watch.seen)
        try:
            with self.watch.armed():
                accepted = self._attempt(self.target, data)
        except Exception as error:  # noqa: BLE001 - what is looked for
            last = traceback.extract_tb(error.__traceback__)[-1]
            self._crash(data, f"{type(error).__name__}: {str(error)[:200]} at {last.filename}:{last.lineno}")
            return
        self.accepted += accepted
        self.refused += not accepted
        if len(self.watch.seen) > seen:
            self._crash(data, self.watch.seen[-1])

    def report(self) -> dict[str, Any]:
        after = self._outside()
        changed = sorted(path for path in {*self.before, *after} if self.before.get(path) != after.get(path))
        return {
            "target": self.name,
            "inputs": self.inputs,
            "accepted": self.accepted,
            "refused": self.refused,
            "crashes": len(self.crashes),
            "outside": len(self.watch.seen) + len(changed),
            "what": [*dict.fromkeys(self.crashes.values())][:10] + self.watch.seen[:10] + changed[:10],
            "seconds": round(time.monotonic() - self.started, 1),
        }

    def _crash(self, data: bytes, what: str) -> None:
        name = hashlib.sha256(data).hexdigest()[:16]
        self.crashes[name] = what
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            (self.keep / f"{self.name}-{name}").write_bytes(data)

    def _outside(self) -> dict[str, tuple[int, int]]:
        """The home and the current folder, which are empty, and everything beside the target's folder."""
        inside = str(self.work)
        found = self._listing(self.folder)
        return {path: status for path, status in found.items() if not path.startswith(inside)}


def with_random(run: Run, runs: int, seed: int) -> None:
    for data in _random_inputs(runs, seed):
        run.one(data)


def _random_inputs(count: int, seed: int) -> Iterator[bytes]:
    source = random.Random(seed)
    for _ in range(count):
        yield source.randbytes(source.choice((8, 16, 32, 64, 256)))


def with_atheris(run: Run, runs: int, seed: int, finish: Callable[[], None]) -> None:
    """Inputs that follow the coverage, from random ones on. libFuzzer ends the process: the last input finishes."""
    import atheris

    corpus = run.work / "corpus"
    corpus.mkdir()
    for place, data in enumerate(_random_inputs(100, seed)):
        (corpus / str(place)).write_bytes(data)

    def one(data: bytes) -> None:
        run.one(data)
        if run.inputs >= runs:
            finish()

    arguments = [f"-seed={seed + 1}", "-max_len=1024", "-len_control=0", "-timeout=60", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], f"-runs={2 * runs + 1000}", *arguments, str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="elm-fuzz-"))
    for name in ("home", "here"):
        (folder / name).mkdir()
    os.environ |= {"HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    os.chdir(folder / "here")
    warnings.simplefilter("ignore")  # zipfile's, of the doubled names that we make
    if options.engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=INSTRUMENTED):
            run = Run(options.target, folder, options.keep)
    else:
        run = Run(options.target, folder, options.keep)

    def finish() -> None:
        report = run.report() | {"engine": options.engine, "seed": options.seed}
        print(json.dumps(report), flush=True)
        os._exit(1 if report["crashes"] or report["outside"] else 0)

    if options.engine == "atheris":
        with_atheris(run, options.runs, options.seed, finish)
    else:
        with_random(run, options.runs, options.seed)
    finish()


def _options() -> argparse.Namespace:
    there = "atheris" if importlib.util.find_spec("atheris") else "random"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, choices=("pack", "settings", "safetensors"))
    parser.add_argument("--runs", type=int, default=2000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("atheris", "random"), default=there)
    parser.add_argument("--keep", type=Path, help="folder for inputs that crash")
    options = parser.parse_args()
    options.keep = options.keep and options.keep.absolute()
    return options


if __name__ == "__main__":
    main()
