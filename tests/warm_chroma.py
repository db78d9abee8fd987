"""The embedded Chroma index of tests. A process of its own opens its folder first, as ever, but one that is forked:
an interpreter that starts and imports Chroma takes seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from forks import forks

from elm_agent.storage.indexes import chroma_probe
from elm_agent.storage.indexes.chroma import ChromaIndex


def warm_chroma(folder: Path) -> ChromaIndex:
    return ChromaIndex(folder, broken=_broken)


def _broken(folder: Path, seconds: float) -> bool:
    process = forks().Process(target=_probe, args=(folder,))
    process.start()
    process.join(seconds)
    return process.exitcode != 0


def _probe(folder: Path) -> None:
    sys.argv[1:] = [str(folder)]
    sys.exit(chroma_probe.main())
