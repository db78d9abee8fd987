"""Conditions over a memory's fields: what they say, and that nothing costly or unknown gets through."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from eviction_helpers import MODEL, NOW
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_agent.errors import InputError
from elm_agent.memory.conditions import FIELDS, LONGEST, condition
from elm_agent.records import MemoryState
from elm_agent.storage.selection import MemoryFacts


def facts(**changed: Any) -> MemoryFacts:
    values: dict[str, Any] = {
        "namespace": "n",
        "id": "mem_1",
        "state": MemoryState.ACTIVE,
        "pinned": False,
        "question": "What is 7 times 8?",
        "task": "math",
        "subject": None,
        "origin": "local",
        "virtual_tokens": 20,
        "final_vote_share": 0.75,
        "model": MODEL,
        "created_at": NOW - timedelta(days=10),
        "state_since": NOW - timedelta(days=4),
        "valid_until": None,
        "uses": 6,
        "useful": 4,
        "settled": 4,
        "fixed": 1,
        "broken": 3,
        "last_useful": NOW - timedelta(days=2),
    }
    return MemoryFacts(**values | changed)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("uses > 5 and utility < 0", True),
        ("uses > 5 and not pinned and state == 'active'", True),
        ("fixed - broken == -2", True),
        ("broken / settled >= 0.8", False),
        ("'times' in question", True),
        ("question == '**'", False),  # what is refused elsewhere may stand in a text
        ("subject == ''", True),
        ("subject in ['ann', 'bob']", False),
        ("age_days > 9 and age_days < 11 and idle_days < 3", True),
        ("created_at < d'2026-06-01'", True),
        ("vote_share >= 0.75", True),
        ("virtual_tokens == 20 and useful == 4 and origin == 'local' and task == 'math'", True),
        ("pinned", False),
    ],
)
def test_what_it_says(text: str, holds: bool) -> None:
    assert condition(text)(facts(), NOW) is holds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("color == 'red'", "unknown symbol: 'color'; the fields are id, state"),
        ("uses >", "syntax error"),
        ("", "syntax error"),
        ("uses > 'many'", "cannot be read"),
        ("uses + 1", "neither true nor false"),
        ("9 ** 9 ** 9 ** 9 > uses", "uses '**'"),
        ("1 << 9999999999 > uses", "uses '<<'"),
        ("question =~ '(a+)+$'", "uses '~'"),
        ("[x for x in [1, 2]] == []", "uses 'for'"),
        ("$split(question) == []", "uses '$'"),
        ("__import__('os')", "cannot be read"),
        ("question.__class__ == ''", "cannot be read"),
        ("-" * 900 + "uses > 1", "nested too deeply"),
        ("uses > 1 or " * 100 + "pinned", f"expected at most {LONGEST}"),
        ("uses > 1\x00", "cannot be read"),
        ("question == 'open", "cannot be read"),
    ],
)
def test_what_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        condition(text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_failure_for_one_memory_names_it() -> None:
    with pytest.raises(InputError, match="fails for memory mem_1"):
        condition("uses / settled > 1")(facts(settled=0), NOW)


SCRAPS = "and or not in ( ) [ ] , < == + - * / 1 9e999 'a' d'x' true null ** for .length ? : d'2026-01-01' if = \" \\"
WORDS = st.sampled_from([*FIELDS, *SCRAPS.split(), "t'P1D'", "\n"])


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=12).map(" ".join) | st.text(max_size=60))
def test_any_text_is_a_condition_or_one_sentence(text: str) -> None:
    try:
        result = condition(text)(facts(), NOW)
    except InputError:
        return  # one sentence; any other failure is a failure
    assert isinstance(result, bool)
