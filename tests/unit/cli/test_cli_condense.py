"""``maintain --merge`` and ``--distil``: first what would be tried, then, when it is agreed to, exactly that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm, assert_one_sentence
from fake_elm import open_fake_runtime

import elm_agent.runtime
from elm_agent.records import MemoryState
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.storage.bank import Bank

pytestmark = pytest.mark.usefixtures("fake")
ANSWER = 42  # the majority answer of the pretended trainer


@pytest.fixture
def bank(elm: Elm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bank]:
    """Three memories, of questions that differ in little; the pretended model is right with any memory."""
    monkeypatch.setenv("ELM_MAINTENANCE__MERGE_SIMILARITY", "0.1")
    for question in ("What is 6 times 7?", "What is 7 times 6?", "What is 21 times 2?"):
        assert elm("ask", question, "--wait").exit_code == 0
    opened = open_bank(Settings(home=tmp_path / ".elm"))
    yield opened
    opened.close()


def document(elm: Elm, *words: object) -> Any:
    result = elm(*words, "--json")
    assert result.exit_code == 0, result.stdout
    return json.loads(result.stdout)


def active(bank: Bank) -> int:
    return len(bank.memories("default", state=MemoryState.ACTIVE))


def test_it_shows_first_and_then_does_the_same(elm: Elm, bank: Bank) -> None:
    shown = elm("maintain", "--merge")
    assert "2 memories would be superseded, 0 would be made" in shown.stdout
    assert "--yes" in shown.stderr
    assert active(bank) == 3
    dry = document(elm, "maintain", "--merge", "--dry-run")["condensed"]
    assert (dry["dry_run"], len(dry["tried"]), active(bank)) == (True, 1, 3)
    assert dry["tried"][0]["successor"] is None
    done = document(elm, "maintain", "--merge", "--yes", "--budget", 600)
    [tried] = done["condensed"]["tried"]
    assert (tried["members"], tried["how"]) == (dry["tried"][0]["members"], "merge")
    assert (tried["successor"], tried["probe"]["broken"]) == (tried["first"], 0)
    assert (done["evicted"], done["dry_run"], active(bank)) == (0, False, 1)
    others = sorted(one for one in tried["members"] if one != tried["first"])
    gone = others[0]
    assert f"took the place of: {', '.join(others)}" in elm("memories", "why", tried["first"]).stdout
    assert f"its place was taken by: {tried['first']}" in elm("memories", "why", gone).stdout
    assert f"superseded by {tried['first']}" in elm("memories", "show", gone).stdout
    assert elm("memories", "restore", gone).exit_code == 0  # the undo
    assert active(bank) == 2
    assert document(elm, "maintain", "--merge", "--yes")["condensed"]["tried"] == []


def test_a_trial_in_vain_is_told_and_not_repeated(elm: Elm, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    first = document(elm, "maintain", "--merge", "--dry-run")["condensed"]["tried"][0]["first"]

    def loses(settings: Any, **options: Any) -> Any:
        runtime = open_fake_runtime(settings, **options)
        runtime.model.reply = lambda _prompt, memory: "\\boxed{1}" if memory == first else f"\\boxed{{{ANSWER}}}"
        return runtime

    monkeypatch.setattr(elm_agent.runtime, "open_runtime", loses)
    report = document(elm, "maintain", "--merge", "--yes")["condensed"]
    assert report["tried"][0]["reason"].startswith("with one for all 2 of 2 answers went wrong and 0 came right")
    assert active(bank) == 3
    assert "1 groups were tried in vain before" in elm("maintain", "--merge", "--yes").stdout


@pytest.mark.usefixtures("fake", "bank")  # in this order
def test_what_cannot_be_done_is_one_sentence(elm: Elm) -> None:
    assert_one_sentence(elm("maintain", "--budget", "5"), 2, "--budget is for --merge and --distil")
    result = elm("maintain", "--distil", "--yes")
    assert result.exit_code == 2
    assert "a FakeModel cannot be trained, so nothing can be distilled: merge alone" in result.stderr
