"""What was purged is in no store, file, cache or dump: its texts and its numbers are searched for byte by byte."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres import server_binaries
from sqlalchemy import make_url

from elm_agent.records import KeyKind, MemoryState, Recipe, Route, UseOutcome, UseRecord, new_id, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.packs.transfer import export_pack
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint, key_of

MODEL = fake_fingerprint()
RECIPE = Recipe(virtual_tokens=3, rollouts=2, steps=2)
SPACE = "default"
OTHERS = 30  # memories that stay, so that pages are shared and files have something to keep


@pytest.fixture(params=["exact", "chroma"])
def open_bank(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Callable[[], Bank]:
    def opened() -> Bank:
        chroma = ChromaIndex(tmp_path / "chroma") if request.param == "chroma" else None
        return Bank(
            Database.open(database_url),
            LocalTensors(tmp_path / "tensors"),
            index="durable" if chroma else "exact",
            durable=chroma,
            exact=ExactIndex(tmp_path / "index", keep_above=3),
        )

    return opened


def learn(bank: Bank, question: str, *, subject: str | None = None, word: str = "plain") -> str:
    """A memory whose every text holds ``word``; its id."""
    bank.jobs.enqueue(SPACE, question, task="math", model_id=MODEL.id, recipe=RECIPE, subject=subject)
    lease = bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    bank.jobs.heartbeat(lease, lease_seconds=60, progress={"majority_answer": f"{word} progress"})
    made = FakeTrainer(majority_answer=f"{word} vote").train(
        question, recipe=RECIPE, seed=hash(question) % 2**32, observe=lambda *_: None, cancelled=lambda: False
    )
    rollouts = tuple(dataclasses.replace(one, text=f"{word} rollout {one.index}") for one in made.rollouts)
    made = dataclasses.replace(made, rollouts=rollouts)
    state: dict[str, Any] = {"state": MemoryState.ACTIVE, "reason": f"{word} gate"}
    memory_id = bank.publish(lease, made, task="math", model=MODEL, recipe=RECIPE, **state).id
    bank.record_use(use(memory_id, word, subject))
    return memory_id


def use(memory_id: str, word: str, subject: str | None) -> UseRecord:
    return UseRecord(
        id=new_id("use"),
        namespace=SPACE,
        memory_id=memory_id,
        subject=subject,
        question=f"{word} asked",
        similarity=0.5,
        key_kind=KeyKind.INPUT,
        route=Route.FAILED_MEMORY,
        reason=f"{word} failure",
        answer=f"{word} answer",
        memory_answer=f"{word} memory answer",
        zero_shot_answer=f"{word} zero",
        outcome=UseOutcome.UNKNOWN,
        created_at=utcnow(),
    )


def numbers(bank: Bank, memory_id: str) -> list[bytes]:
    """Raw float32 of both keys and of the prompt, whole and in pieces: a file may hold them in pages."""
    keys, prompt = bank.keys(SPACE, memory_id), bank.prompt(SPACE, memory_id).prompt_VE.numpy()
    assert keys.kv is not None
    whole = [keys.input.tobytes(), keys.kv.tobytes(), prompt.tobytes()]
    return [data[start : start + 32] for data in whole for start in range(0, len(data) - 31, 32)]


def stores(home: Path, database_url: str) -> Iterator[tuple[str, bytes]]:
    """Every file under ``home``; of PostgreSQL a dump, and its own files once it has written what it holds."""
    for path in home.rglob("*"):
        if path.is_file():
            yield str(path.relative_to(home)), path.read_bytes()
    if database_url.startswith("postgresql"):
        url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        dump = subprocess.run([server_binaries() / "pg_dump", url], capture_output=True, check=True)
        yield "pg_dump", dump.stdout


def found(home: Path, database_url: str, wanted: list[bytes]) -> list[str]:
    """Where any of ``wanted`` is, as raw bytes or, as dumps have them, in hexadecimal."""
    return [
        f"{name}: {text[:40]!r}"
        for name, data in stores(home, database_url)
        for text in wanted
        if text in data or text.hex().encode() in data
    ]


def warm(bank: Bank) -> None:
    """Let every cache and snapshot have everything."""
    for kind in KeyKind:
        for hit in bank.nearest(SPACE, kind, key_of("what is it", kind), 100):
            bank.prompt(SPACE, hit.memory_id)


def test_a_purge_leaves_no_trace(open_bank: Callable[[], Bank], database_url: str, tmp_path: Path) -> None:
    with closing(open_bank()) as bank:
        bank.bind(SPACE, MODEL)
        for n in range(OTHERS):
            learn(bank, f"What is {n} and {n}?")
        gone = learn(bank, "What is zyzzyva?", subject="quokka", word="zyzzyva")
        warm(bank)
        bank.review(SPACE, gone, actor="test", verdict="bad", note="zyzzyva review")
        bank.transition(SPACE, gone, MemoryState.RETIRED, actor="test", reason="zyzzyva reason")
        bank.transition(SPACE, gone, MemoryState.ACTIVE, actor="test", reason="zyzzyva again")
        warm(bank)
        wanted = [b"zyzzyva", b"quokka", *numbers(bank, gone)]
    before = found(tmp_path, database_url, wanted)
    assert len(before) > len(wanted), "the search finds what is there"
    with closing(open_bank()) as bank:
        warm(bank)
        report = bank.purge(SPACE, [gone], actor="test", reason="it has to go")
        assert (report.uses, report.jobs) == (1, 1)
        assert found(tmp_path, database_url, wanted) == [], "while the bank is open"
        warm(bank)
        learn(bank, "What comes after?")
    assert found(tmp_path, database_url, wanted) == []
    with closing(open_bank()) as bank:
        assert len(bank.nearest(SPACE, KeyKind.INPUT, key_of("what", KeyKind.INPUT), 100)) == OTHERS + 1


def test_a_forgotten_person_leaves_no_trace(open_bank: Callable[[], Bank], database_url: str, tmp_path: Path) -> None:
    with closing(open_bank()) as bank:
        bank.bind(SPACE, MODEL)
        kept = [learn(bank, f"What is {n} and {n}?") for n in range(OTHERS)]
        mine = [learn(bank, f"What is zyzzyva {n}?", subject="quokka", word="zyzzyva") for n in range(3)]
        bank.record_use(use(kept[0], "zyzzyva", "quokka"))  # what the person asked of somebody else's memory
        bank.jobs.enqueue(SPACE, "zyzzyva waits", task="math", model_id=MODEL.id, recipe=RECIPE, subject="quokka")
        bank.pin(SPACE, mine[0], True, actor="test")
        warm(bank)
        wanted = [b"zyzzyva", b"quokka", *(data for one in mine for data in numbers(bank, one))]
        (forgotten,) = bank.forget_subject("quokka", actor="test")
        assert sorted(forgotten.memory_ids) == sorted(mine)
        assert found(tmp_path, database_url, wanted) == []
    with closing(open_bank()) as bank:
        assert [job for job in bank.jobs.list(SPACE) if job.subject] == []
        assert len(bank.memories(SPACE)) == OTHERS


def test_a_pack_that_still_holds_it_is_named(open_bank: Callable[[], Bank], tmp_path: Path) -> None:
    from elm_agent.storage.health.doctor import FindingKind, examine

    with closing(open_bank()) as bank:
        bank.bind(SPACE, MODEL)
        gone = learn(bank, "What is zyzzyva?")
        pack = tmp_path / "out.elm"
        export_pack(bank, SPACE, pack, actor="test")
        report = bank.purge(SPACE, [gone], actor="test", reason=None)
        assert [Path(path) for _, _, path in report.exports] == [pack]
        (finding,) = examine(bank, repair=True).findings
        assert (finding.kind, finding.subject, finding.action) == (FindingKind.EXPORTED_COPY, gone, None)
        assert str(pack) in finding.problem
        pack.unlink()
        assert examine(bank).clean
