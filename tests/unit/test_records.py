"""What records say of texts."""

from __future__ import annotations

import pytest

from elm_agent.records import is_storable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("7 × 8 = 56\n", True),
        ("\ud7ff\ue000\ufffd😀", True),
        ("a\x00", False),
        ("\ud800", False),
        ("\udfffb", False),
    ],
)
def test_nul_and_half_characters_are_not_stored(text: str, expected: bool) -> None:
    assert is_storable(text) is expected
