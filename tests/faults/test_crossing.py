"""Every public call with ids, digests and job ids of another namespace, and with names that play tricks: 0 leaks.

ELM_PROBES=10000 makes that many calls on each database.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dying_worker import make_worker
from kill_child import MODEL, RECIPE, Place
from typer.testing import CliRunner

from elm_agent.cli.app import app
from elm_agent.errors import ElmError
from elm_agent.protocols import IndexEntry
from elm_agent.records import KeyKind, MemoryState, Route, UseOutcome, UseRecord, new_id, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.testing.doubles import key_of

PROBES = int(os.environ.get("ELM_PROBES", "400"))
MINE, OTHER, SECRET = "mine", "other", "marmalade"
TRICKS = [
    "Mine", "MINE", "mine ", " mine", "mine/", "./mine", "../mine", "mine/../other", "other/", "OTHER", "Other",
    "other\x00", "mine\x00other", "\u202eother", "other\u202c", "оther", "ｏther", "othe\u0301r", "%6fther",
    "other%00", "o%", "_____", "other;--", "' OR 1=1 --", '"other"', "*", "", ".", "..", "/", "\\other", "C:other",
    "~", "o" * 10_000,
    "other\n", "other\t", "\ud800", "null", "None", "other.", "other-", "+other", "con", "aux.txt",
]  # fmt: skip


@pytest.fixture
def bank(database_url: str, tmp_path: Path) -> Iterator[Bank]:
    with closing(Place(database_url, tmp_path).open()) as opened:
        for name, word in ((MINE, "plain"), (OTHER, SECRET)):
            opened.bind(name, MODEL)
            for n in range(3):
                question = f"What is {word} {n}?"
                opened.jobs.enqueue(name, question, task="math", model_id=MODEL.id, recipe=RECIPE, subject=word)
            while make_worker(opened).run_one():
                pass
            for memory in opened.memories(name):
                opened.record_use(use(name, memory.id, word))
        yield opened


def use(namespace: str, memory_id: str, word: str, use_id: str | None = None) -> UseRecord:
    return UseRecord(
        id=use_id or new_id("use"),
        namespace=namespace,
        memory_id=memory_id,
        question=f"{word}?",
        similarity=0.5,
        key_kind=KeyKind.INPUT,
        route=Route.MEMORY,
        reason=None,
        answer=word,
        memory_answer=word,
        zero_shot_answer=word,
        outcome=UseOutcome.UNKNOWN,
        created_at=utcnow(),
    )


def calls(bank: Bank, name: str, memory_id: str, use_id: str, digest: str) -> list[Callable[[], Any]]:
    """Every public call that takes a namespace, asked in ``name`` for things of ``OTHER``."""
    by = {"actor": "prober"}
    kind, query = KeyKind.INPUT, key_of(f"What is {SECRET} 1?", KeyKind.INPUT)
    return [
        lambda: bank.memory(name, memory_id),
        lambda: bank.memories(name),
        lambda: bank.prompt(name, memory_id),
        lambda: bank.episode(name, memory_id),
        lambda: bank.keys(name, memory_id),
        lambda: bank.events(name, memory_id),
        lambda: bank.events(name),
        lambda: bank.exports(name, memory_id),
        lambda: bank.tombstones(name),
        lambda: bank.uses(name, memory_id),
        lambda: bank.uses(name),
        lambda: bank.transition(name, memory_id, MemoryState.RETIRED, reason=None, **by),
        lambda: bank.evict(name, {memory_id: "mine now"}, **by),
        lambda: bank.pin(name, memory_id, True, **by),
        lambda: bank.review(name, memory_id, verdict="bad", note=None, **by),
        lambda: bank.repaired(name, memory_id, detail={}, **by),
        lambda: bank.purge(name, [memory_id], reason=None, **by),
        lambda: bank.finish_purges(name),
        lambda: bank.forget_subject(SECRET, namespace=name, **by),
        lambda: bank.record_use(use(name, memory_id, "probe")),
        lambda: bank.settle_use(name, use_id, UseOutcome.BROKEN),
        lambda: bank.nearest(name, kind, query, 10),
        lambda: bank.scrub_indexes(name),
        lambda: bank.jobs.list(name),
        lambda: bank.tensors.get(name, digest),
        lambda: bank.tensors.age(name, digest),
        lambda: bank.tensors.delete(name, digest),
        lambda: list(bank.tensors.digests(name)),
        lambda: bank.drop_caches(name, [memory_id]),
    ]


def state_of(bank: Bank, name: str) -> list[Any]:
    """Everything of a namespace that a probe may neither change nor see."""
    memories = [(one.id, one.state, one.pinned, one.uses, one.broken) for one in bank.memories(name)]
    return [
        memories,
        bank.uses(name),
        bank.jobs.list(name),
        sorted(bank.tensors.digests(name)),
        len(bank.events(name)),
    ]


def test_nothing_crosses(bank: Bank) -> None:
    dice, before, done = random.Random(0), state_of(bank, OTHER), 0
    theirs = bank.memories(OTHER)
    use_ids = [one.id for one in bank.uses(OTHER)]
    secrets = {SECRET, *(one.id for one in theirs), *use_ids, *(one.tensor_digest for one in theirs)}
    names = [MINE, *TRICKS]
    while done < PROBES:
        name, memory = dice.choice(names), dice.choice(theirs)
        if name != MINE and dice.random() < 0.2:
            with pytest.raises(ElmError):
                bank.bind(name, MODEL) if not re.fullmatch(r"[A-Za-z0-9._-]+", name) else bank.memories(name)
        for call in calls(bank, name, memory.id, dice.choice(use_ids), memory.tensor_digest):
            done += 1
            try:
                text = repr(call())
            except ElmError as error:
                text = re.sub(r"mem_\w+|use_\w+|sha256:\w+", "", str(error))  # what was asked may be said again
                assert "\n" not in text
                assert len(text) < 600, "a long name is not repeated"
            assert not [secret for secret in secrets if secret in text], f"{name[:40]!r}: {text[:200]}"
    assert state_of(bank, OTHER) == before
    assert examine(bank).clean


@pytest.mark.parametrize("index", ["exact", "chroma"])
def test_an_index_keeps_look_alike_names_apart(tmp_path: Path, index: str) -> None:
    made: Any = ExactIndex(tmp_path / "index") if index == "exact" else ChromaIndex(tmp_path / "chroma")
    names = [MINE, OTHER, "Other", "OTHER", "other.", "other-", "o", "_" * 5, "x" * 90]
    with closing(made):
        for n, name in enumerate(names):
            made.apply(name, KeyKind.INPUT, [IndexEntry(f"mem_{n}", key_of(f"key {n}", KeyKind.INPUT))], [])
        for n, name in enumerate(names):
            assert made.ids(name, KeyKind.INPUT) == {f"mem_{n}"}
            (hit,) = made.search(name, KeyKind.INPUT, key_of("key 0", KeyKind.INPUT), 20)
            assert hit.memory_id == f"mem_{n}"
            made.apply(name, KeyKind.INPUT, [], [f"mem_{(n + 1) % len(names)}"])
        assert [made.ids(name, KeyKind.INPUT) for name in names] == [{f"mem_{n}"} for n in range(len(names))]


def test_the_command_line_keeps_to_its_namespace(tmp_path: Path) -> None:
    with closing(Place(f"sqlite:///{tmp_path / 'elm.sqlite'}", tmp_path).open()) as bank:
        for name, word in ((MINE, "plain"), (OTHER, SECRET)):
            bank.bind(name, MODEL)
            bank.jobs.enqueue(name, f"What is {word}?", task="math", model_id=MODEL.id, recipe=RECIPE)
        while make_worker(bank).run_one():
            pass
        (memory,), (job,) = bank.memories(OTHER), bank.jobs.list(OTHER)
        before = state_of(bank, OTHER)
    about = ["--home", str(tmp_path), "--namespace", MINE]
    asked = [
        *(["memories", verb, memory.id] for verb in ("show", "evict", "restore", "pin", "unpin", "history")),
        *(["jobs", verb, job.id] for verb in ("show", "cancel", "retry")),
        ["memories", "list"], ["jobs", "list"], ["audit", "log"],
    ]  # fmt: skip
    runner = CliRunner()
    for words in asked:
        done = runner.invoke(app, [*words, *about])
        if done.exit_code == 2 and "No such command" in done.output:
            continue
        assert SECRET not in done.output, words
        if len(words) == 3:
            assert done.exit_code != 0, words
    with closing(Place(f"sqlite:///{tmp_path / 'elm.sqlite'}", tmp_path).open()) as bank:
        assert state_of(bank, OTHER) == before
