"""Question streams: made from a seed, or read from a file with faults in it."""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_agent.bench.streams import FAMILIES, Line, Problem, arithmetic_stream, read_questions
from elm_agent.errors import InputError

OPERATORS = {
    "times": operator.mul,
    "*": operator.mul,
    "x": operator.mul,
    "plus": operator.add,
    "+": operator.add,
    "minus": operator.sub,
    "-": operator.sub,
}


def operands(problem: Problem) -> tuple[int, str, int]:
    found = re.search(r"(\d+) (\S+) (\d+)", problem.question)
    assert found is not None
    return int(found[1]), found[2], int(found[3])


@given(st.integers(0, 2**32), st.integers(0, 150), st.lists(st.sampled_from(FAMILIES), min_size=1, unique=True))
def test_references_are_right_and_questions_distinct(seed: int, count: int, families: list[str]) -> None:
    count = min(count, 135 * len(families))  # the smallest family has 45 pairs in 3 wordings
    stream = arithmetic_stream(seed=seed, count=count, families=families)
    assert len({problem.question for problem in stream}) == count
    for problem in stream:
        a, sign, b = operands(problem)
        assert int(problem.reference) == OPERATORS[sign](a, b)
        assert problem.family in families


@pytest.mark.parametrize(
    ("family", "low", "high", "pairs"),
    [("products", 2, 9, 64), ("sums", 1, 9, 81), ("differences", 1, 9, 45), ("two_digit_sums", 10, 99, 8100)],
)
def test_a_family_has_every_pair_in_every_wording(family: str, low: int, high: int, pairs: int) -> None:
    stream = arithmetic_stream(seed=1, count=3 * pairs, families=[family])
    seen = [operands(problem) for problem in stream]
    assert {number for a, _, b in seen for number in (a, b)} == set(range(low, high + 1))
    assert len({(a, b) for a, _, b in seen[:pairs]}) == pairs, "every pair comes once before any comes again"
    assert set(Counter((a, b) for a, _, b in seen).values()) == {3}
    assert len({problem.question.split()[0] for problem in stream[: pairs // 2]}) == 2, "wordings are mixed"
    with pytest.raises(InputError, match=f"{family} have {3 * pairs} distinct questions"):
        arithmetic_stream(seed=1, count=3 * pairs + 1, families=[family])


def test_equal_seeds_make_equal_streams_and_others_differ() -> None:
    stream = arithmetic_stream(seed=5, count=40, families=["products", "sums"])
    assert stream == arithmetic_stream(seed=5, count=40, families=["products", "sums"])
    assert stream[:10] == arithmetic_stream(seed=5, count=10, families=["products", "sums"])
    assert stream != arithmetic_stream(seed=6, count=40, families=["products", "sums"])
    alone = arithmetic_stream(seed=5, count=20, families=["products"])
    assert [problem for problem in stream if problem.family == "products"] == alone


def test_a_known_stream_stays_as_it_is() -> None:
    """Recorded results name seeds: the same seed must make the same questions on every machine and version."""
    stream = arithmetic_stream(seed=0, count=4, families=["products", "differences"])
    assert [(problem.question, problem.reference) for problem in stream] == [
        ("What is 7 x 6?", "42"),
        ("What is 9 minus 3?", "6"),
        ("What is 5 minus 1?", "4"),
        ("What is 2 times 4?", "8"),
    ]


def test_families_take_turns_until_they_are_used_up() -> None:
    stream = arithmetic_stream(seed=2, count=135 * 2 + 30, families=["differences", "products"])
    counts = Counter(problem.family for problem in stream[:40])
    assert counts == {"differences": 20, "products": 20}
    assert Counter(problem.family for problem in stream) == {"differences": 135, "products": 165}


@pytest.mark.parametrize("families", [[], ["products", "products"], "products"])
def test_unusable_families(families: list[str]) -> None:
    with pytest.raises(InputError, match="expected a list of different names of products, sums"):
        arithmetic_stream(seed=0, count=1, families=families)


def test_unknown_family_and_negative_count() -> None:
    with pytest.raises(InputError, match="unknown family 'roots': expected some of products"):
        arithmetic_stream(seed=0, count=1, families=["roots"])
    with pytest.raises(InputError, match="at least 0 questions; got -1"):
        arithmetic_stream(seed=0, count=-1, families=["sums"])


# --- files ----------------------------------------------------------------------------------------------------


def read(tmp_path: Path, data: bytes) -> list[Line]:
    file = tmp_path / "questions.jsonl"
    file.write_bytes(data)
    return list(read_questions(file))


def test_good_lines_with_and_without_reference(tmp_path: Path) -> None:
    lines = read(
        tmp_path,
        b'\xef\xbb\xbf{"question": "a", "answer": "1"}\n\n \r\n{"question": "b", "answer": 2}\r\n'
        b'{"question": "c", "answer": 0.5, "id": 7}\n{"question": "d", "answer": null}\n{"question": "\\u00e9"}',
    )
    assert lines == [
        Line(1, "a", "1"),
        Line(4, "b", "2"),
        Line(5, "c", "0.5"),
        Line(6, "d", None),
        Line(7, "\u00e9", None),
    ]


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (b"not json", "line 2 is not JSON: Expecting value"),
        (b'{"question": "a"', "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b'{"question": "caf\xe9"}', "line 2 is not UTF-8: byte 18 is 0xe9"),
        (b'"text"', "line 2 is a JSON string: expected an object"),
        (b"[1]", "line 2 is a JSON list: expected an object"),
        (b"null", "line 2 is a JSON null: expected an object"),
        (b"7", "line 2 is a JSON number: expected an object"),
        (b'{"query": "a", "id": 1}', "line 2: no field 'question'; it has 'query', 'id'"),
        (b"{}", "line 2: no field 'question'; it has none"),
        (b'{"question": 7}', "line 2: field 'question' is a number: expected text"),
        (b'{"question": null}', "line 2: field 'question' is a null: expected text"),
        (b'{"question": " \\n"}', "line 2: field 'question' is blank"),
        (b'{"question": "a\\u0000"}', "line 2: field 'question' holds a NUL character"),
        (b'{"question": "a\\ud800"}', "line 2: field 'question' holds a NUL character or half a surrogate pair"),
        (b'{"question": "a", "answer": [1]}', "line 2: field 'answer' is a list: expected text or a number"),
        (b'{"question": "a", "answer": true}', "line 2: field 'answer' is a truth value"),
        (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}", "line 2 is not JSON"),
    ],
)
def test_a_faulty_line_is_named_and_the_rest_goes_on(tmp_path: Path, bad: bytes, fault: str) -> None:
    first, faulty, last = read(tmp_path, b'{"question": "a"}\n' + bad + b'\n{"question": "z"}\n')
    assert (first, last) == (Line(1, "a"), Line(3, "z"))
    assert (faulty.number, faulty.question, faulty.reference) == (2, None, None)
    assert faulty.fault is not None
    assert faulty.fault.startswith(fault)
    assert "\n" not in faulty.fault


def test_other_field_names(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"problem": "a", "solution": "b"}))
    assert list(read_questions(file, question_field="problem", answer_field="solution")) == [Line(1, "a", "b")]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert read(tmp_path, b"") == []


def test_a_missing_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist: expected a file of JSON objects"):
        read_questions(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="is not a file"):
        read_questions(tmp_path)
