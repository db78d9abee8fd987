"""Bits are flipped and ends cut off in every kind of file: found, or harmless, and never the end of the process.

ELM_FLIPS=500 damages that many files.
"""

import os
import random
from pathlib import Path

import pytest
from flipped_files import KINDS, campaign, table

FLIPS = int(os.environ.get("ELM_FLIPS", "0"))


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_damage_is_found_or_harmless(tmp_path: Path) -> None:
    flips = campaign(tmp_path, FLIPS or 2 * len(KINDS), random.Random(0))
    print(table(flips))
    assert [text for one in flips.values() for text in one.said] == []
    assert all(one.flips for one in flips.values())
