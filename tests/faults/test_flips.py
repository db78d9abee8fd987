"""Bits are flipped and ends cut off in every kind of file: found, or harmless, and never the end of the process.

ELM_FLIPS=500 damages that many files.
"""

import os
import random
from pathlib import Path

import pytest
from flipped_files import Campaign, table
from flipped_homes import KINDS, Objects
from s3 import S3Server

FLIPS = int(os.environ.get("ELM_FLIPS", "0"))


def check(campaign: Campaign, count: int) -> None:
    flips = campaign.run(FLIPS or count)
    print(table(flips))
    assert [text for one in flips.values() for text in one.said] == []
    assert all(one.flips for one in flips.values())


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_damage_is_found_or_harmless(tmp_path: Path) -> None:
    check(Campaign(tmp_path, random.Random(0), None), 2 * len(KINDS))


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_damaged_objects_are_found(tmp_path: Path, s3_server: S3Server) -> None:
    check(Campaign(tmp_path, random.Random(0), Objects(s3_server)).only("object in S3"), 3)
