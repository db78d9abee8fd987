"""Task sets: graded arithmetic with held-out halves, data sets with faults and duplicates, and words not known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from elm_agent.bench.evidence.families import GRADED, SPLITS, graded_items
from elm_agent.bench.evidence.task_sets import KNOWN, load_task_set
from elm_agent.errors import InputError


@pytest.mark.parametrize("name", GRADED)
def test_held_out_questions_share_neither_wordings_nor_numbers(name: str) -> None:
    family = GRADED[name]
    numbers: dict[str, set[tuple[str, ...]]] = {}
    for split in SPLITS:
        items = graded_items([name], count=None, split=split, seed=0)
        assert len(items) >= 15
        assert len({item.digest for item in items}) == len({item.id for item in items}) == len(items)
        numbers[split] = {tuple(sorted(item.id.rpartition("/")[2].split("-"))) for item in items}
        wordings = family.train if split == "train" else family.test
        for item in items:
            values = [int(part) for part in item.id.rpartition("/")[2].split("-")]
            assert item.question in {wording.format(*values) for wording in wordings}
            assert item.answer == str(family.solve(*values))
            assert int(item.answer) >= 0
    assert not numbers["train"] & numbers["test"]
    assert not set(family.train) & set(family.test)


def test_the_hard_families_are_solved_right() -> None:
    def solve(name: str, *numbers: int) -> int:
        return GRADED[name].solve(*numbers)

    assert solve("sequences", 3, 4, 7, 11) == 15
    assert solve("two_steps", 2, 3, 4) == 20
    assert solve("shopping", 3, 4, 50) == 38
    assert solve("ages", 5, 2, 3) == 8 + 10
    assert solve("remainders", 47, 7) == 5


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    larger = load_task_set("arithmetic:products+sums", limit=20)
    assert load_task_set("arithmetic:products+sums", limit=8).items == larger.items[:8]
    assert load_task_set("arithmetic:products+sums", limit=20, seed=1).items != larger.items
    assert [(item.family, item.split) for item in larger.items[:4]] == [
        ("products", "train"),
        ("products", "test"),
        ("sums", "train"),
        ("sums", "test"),
    ]
    held = load_task_set("arithmetic:products+sums@test", limit=6)
    assert {item.split for item in held.items} == {"test"}
    assert (held.name, held.kind, held.duplicates) == ("arithmetic:products+sums@test", "math", ())


def test_rows_that_cannot_be_used_are_listed_and_duplicates_told(tmp_path: Path) -> None:
    rows = [
        {"problem": "One?", "answer": 1},
        {"problem": "Two?"},
        {"problem": "Three?", "answer": None},
        {"problem": "Four?", "answer": "  "},
        {"question": "Five?", "answer": "5"},
        {"problem": " One? ", "answer": "1"},
        {"problem": "Six?", "answer": "\\frac{1}{2"},
        {"problem": "Seven?", "answer": ["7"]},
        {"problem": "Eight?", "answer": "\\frac{1}{2}"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n{broken\n")
    made = load_task_set(f"{file}:problem:answer")
    assert [(item.id, item.question, item.answer) for item in made.items] == [
        ("00001", "One?", "1"),
        ("00006", " One? ", "1"),
        ("00009", "Eight?", "\\frac{1}{2}"),
    ]
    assert made.duplicates == (("00001", "00006"),)
    told = {fault.where: fault.reason for fault in made.faults}
    assert list(told) == ["line 2", "line 3", "line 4", "line 5", "line 7", "line 8", "line 11"]
    assert told["line 2"] == "the answer field is missing or null"
    assert told["line 4"] == "the answer cannot be used: it is blank"
    assert told["line 5"] == "no field 'problem'; it has 'question', 'answer'"
    assert told["line 7"].startswith("the answer cannot be used: its braces do not match")
    assert told["line 8"] == "field 'answer' is a list: expected text or a number"
    assert told["line 11"].startswith("is not JSON")
    assert len(load_task_set(f"{file}:problem", limit=1).faults) == 7, "all faults are told, whatever the limit"


@pytest.mark.parametrize(
    ("name", "row", "question", "answer", "family"),
    [
        ("math500", {"problem": "P", "answer": "\\pi", "subject": "Algebra"}, "P", "\\pi", "Algebra"),
        ("amc23", {"problem": "P", "answer": 27.0}, "P", "27.0", "amc23"),
        ("aime24", {"question": "P", "answer": "204"}, "P", "204", "aime24"),
        ("gsm8k", {"question": "P", "answer": "9 * 2 = 18\n#### 1,018"}, "P", "1,018", "gsm8k"),
        (
            "svamp",
            {"Body": "There are 3.", "Question": "And 4?", "Answer": "7.0", "Type": "Addition"},
            "There are 3. And 4?",
            "7.0",
            "Addition",
        ),
    ],
)
def test_known_data_sets_are_read_from_files_too(
    tmp_path: Path, name: str, row: dict[str, object], question: str, answer: str, family: str
) -> None:
    file = tmp_path / "rows.jsonl"
    bad = {**row, KNOWN[name].fields.answer: "\n\n" if name == "math500" else "no number"}
    file.write_text(json.dumps(row) + "\n" + json.dumps(bad) + "\n")
    made = load_task_set(f"{name}={file}")
    [item] = made.items
    assert (made.name, made.kind, item.question, item.answer, item.family) == (name, "math", question, answer, family)
    [fault] = made.faults
    assert fault.where == "line 2"
    assert "the answer cannot be used" in fault.reason


def test_a_data_set_of_the_library_judges_itself() -> None:
    pytest.importorskip("reasoning_gym")
    made = load_task_set("gym:basic_arithmetic", limit=3, seed=4)
    assert (len(made.items), made.kind, made.items[0].family) == (3, "math", "basic_arithmetic")
    assert made.items == load_task_set("gym:basic_arithmetic", limit=3, seed=4).items
    assert made.judge is not None
    assert made.judge(made.items[1], made.items[1].answer)
    assert not made.judge(made.items[1], made.items[1].answer + "1")
    with pytest.raises(InputError, match="reasoning-gym has no data set 'nothing': it has"):
        load_task_set("gym:nothing")


def test_a_data_set_in_the_form_of_the_hub_is_read(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl").write_text('{"q": "One?", "a": "1"}\n{"q": "Two?", "a": ""}\n')
    made = load_task_set(f"hub:{tmp_path / 'set'}:test:q:a")
    assert [(item.question, item.answer) for item in made.items] == [("One?", "1")]
    assert [fault.where for fault in made.faults] == ["line 2"]


HUB_ROWS: dict[tuple[str, str | None, str], dict[str, object]] = {
    ("HuggingFaceH4/MATH-500", None, "test"): {"problem": "P?", "answer": "\\frac{1}{2}", "subject": "Algebra"},
    ("math-ai/amc23", None, "test"): {"question": "P?", "answer": "27.0"},
    ("HuggingFaceH4/aime_2024", None, "train"): {"problem": "P?", "answer": "204"},
    ("openai/gsm8k", "main", "test"): {"question": "P?", "answer": "3 + 4 is 7.\n#### 7"},
    ("openai/gsm8k", "socratic", "train"): {"question": "P?", "answer": "8"},
    ("ChilleD/SVAMP", None, "test"): {"Body": "B.", "Question": "P?", "Answer": "4", "Type": "Addition"},
}
"""A row as each data set of the hub has it, by name, configuration and split."""


@pytest.mark.parametrize(
    ("words", "name", "question", "answer", "family"),
    [
        ("math500", "math500", "P?", "\\frac{1}{2}", "Algebra"),
        ("amc23", "amc23", "P?", "27.0", "amc23"),
        ("aime24", "aime24", "P?", "204", "aime24"),
        ("gsm8k", "gsm8k", "P?", "7", "gsm8k"),
        ("svamp", "svamp", "B. P?", "4", "Addition"),
        ("hub:openai/gsm8k@socratic:train:question:answer", "openai/gsm8k@socratic", "P?", "8", None),
        ("hub:math-ai/amc23:test:question:answer", "math-ai/amc23", "P?", "27.0", None),
    ],
)
def test_a_data_set_of_the_hub_is_asked_for_by_name_configuration_and_split(
    monkeypatch: pytest.MonkeyPatch, words: str, name: str, question: str, answer: str, family: str | None
) -> None:
    def load_dataset(hub: str, config: str | None, *, split: str) -> list[dict[str, object]]:
        return [HUB_ROWS[hub, config, split]]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    made = load_task_set(words)
    (item,) = made.items
    assert (made.name, made.kind, made.faults) == (name, "math", ())
    assert (item.question, item.answer, item.family) == (question, answer, family or name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("poems", "unknown tasks 'poems': expected arithmetic"),
        ("arithmetic:sums+sums", "expected different names"),
        ("arithmetic@dev", "unknown split 'dev': expected train or test"),
        ("hub:owner/name", "expected hub:OWNER/NAME:SPLIT:QUESTION:ANSWER"),
        ("none.jsonl", "question file 'none.jsonl' does not exist"),
        ("none.jsonl:a:b:c", "expected FILE.jsonl:QUESTION:ANSWER"),
        ("none.jsonl.gz", "expected FILE.jsonl:QUESTION:ANSWER"),
    ],
)
def test_words_that_name_nothing_are_refused(words: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        load_task_set(words)


def test_too_few_questions_and_none_at_all_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="differences have 45 questions; got a limit of 46"):
        load_task_set("arithmetic:differences", limit=46)
    (tmp_path / "empty.jsonl").write_text('{"question": "a", "answer": null}\n')
    with pytest.raises(InputError, match=r"'empty' has no usable question .1 rows cannot be used; line 1: the"):
        load_task_set(str(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize(("words", "package"), [("gym:sums", "reasoning_gym"), ("gsm8k", "datasets")])
def test_a_missing_package_is_one_sentence(words: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'elm-agent\[evidence\]'"):
        load_task_set(words)
