"""A live bank goes to other back ends and comes back: nothing lost, nothing doubled, nothing that was purged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import MODEL, RECIPE, learner, unit
from sqlalchemy import text

from elm_agent.bench import filling
from elm_agent.errors import BankMoved, InputError, ModelMismatch, StorageError
from elm_agent.records import (
    EventKind,
    KeyKind,
    MemoryState,
    ModelFingerprint,
    UseOutcome,
    UseRecord,
)
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.ledger import chain
from elm_agent.storage.moving.move import MOVE_STEPS, move
from elm_agent.storage.moving.rows import TABLES, RowCopy, Tally
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors

Open = Callable[[str, str], Bank]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    banks: list[Bank] = []

    def open_bank(url: str, name: str) -> Bank:
        database = Database.open(url, busy_seconds=20)
        banks.append(Bank(database, LocalTensors(tmp_path / name), index="exact", shared=["other"]))
        return banks[-1]

    yield open_bank
    for bank in banks:
        bank.close()


@pytest.fixture
def source(opened: Open, tmp_path: Path) -> Bank:
    return filled(opened(f"sqlite:///{tmp_path / 'source.sqlite'}", "tensors-of-source"))


@pytest.fixture
def target(opened: Open, database_url: str) -> Bank:
    return opened(database_url, "tensors-of-target")


def filled(bank: Bank) -> Bank:
    """Memories in all states, reasons, uses (one of a shared memory), jobs, a tombstone; two namespaces."""
    for namespace in ("default", "other"):
        bank.bind(namespace, MODEL)
    learn = learner(bank)
    first = learn("one question", unit(1, 0, 0, 0))
    for number, state in enumerate((MemoryState.QUARANTINED, MemoryState.RETIRED)):
        made = learn(f"{number} question", unit(number, 1, 0, 0), kv=unit(1, 2, 3, 4, 5, 6, 7, 8))
        bank.transition("default", made.id, state, actor="test", reason="не нужен\x00")
    learn("a candidate", unit(0, 0, 1, 0), state=MemoryState.CANDIDATE)
    gone = learn("to be purged", unit(0, 0, 0, 1))
    bank.purge("default", [gone.id], actor="test", reason="private")
    learn("a shared one", unit(0, 0, 1, 1), namespace="other")
    bank.record_use(use_of(first.id))
    [shared] = bank.memories("other")
    bank.record_use(use_of(shared.id, home="other"))
    bank.pin("default", first.id, True, actor="test")
    bank.jobs.enqueue("default", "a job that waits", task="math", model_id=MODEL.id, recipe=RECIPE)
    return bank


def use_of(memory_id: str, home: str = "") -> UseRecord:
    return filling.use_of(
        "default",
        memory_id,
        memory_namespace=home,
        similarity=0.1 + 0.2,
        zero_shot_answer=None,
        outcome=UseOutcome.FIXED,
    )


def content(bank: Bank) -> dict[str, Any]:
    """All that can be asked of a bank."""
    names = [info.name for info in bank.namespaces()]
    ids = [(name, memory.id) for name in names for memory in bank.memories(name)]
    return {
        "memories": [bank.memories(name) for name in names],
        "episodes": [bank.episode(*one) for one in ids],
        "prompts": [bank.prompt(*one).prompt_VE.tolist() for one in ids],
        "keys": [bank.keys(*one).input.tolist() for one in ids],
        "uses": [bank.uses(name) for name in names],
        "jobs": bank.jobs.list(),
        "events": [bank.events(name) for name in names],
        "tombstones": [bank.tombstones(name) for name in names],
        "tensors": [sorted(bank.tensors.digests(name)) for name in names],
    }


def check_whole(bank: Bank) -> None:
    for info in bank.namespaces():
        assert chain.verify(bank.database, info.name).broken is None
    assert examine(bank).clean


def test_everything_arrives_and_the_source_refuses_changes(source: Bank, target: Bank) -> None:
    before = content(source)
    report = move(source, target, actor="test")
    assert report.moved
    assert (report.namespaces, report.missing) == (("default", "other"), ())
    assert report.tensors == 5
    assert report.rows["memories"] == 5
    after = content(target)
    for name in before.keys() - {"events"}:
        assert after[name] == before[name], name
    for history, longer in zip(before["events"], after["events"], strict=True):
        assert longer[:-1] == history
        assert longer[-1].kind == EventKind.MOVED
    assert content(source)["events"] == after["events"], "one chain on both sides"
    check_whole(target)
    [hit] = target.nearest("default", KeyKind.INPUT, unit(1, 0, 0, 0), 1)
    memory = target.memory("default", hit.memory_id)
    [shared] = target.memories("other")
    for change in (
        lambda: source.pin("default", memory.id, False, actor="test"),
        lambda: source.record_use(use_of(memory.id)),
        lambda: source.settle_use("default", source.uses("default")[0].id, UseOutcome.BROKEN),
        lambda: source.jobs.enqueue("default", "late", task="math", model_id=MODEL.id, recipe=RECIPE),
        lambda: source.jobs.claim("late", lease_seconds=1),
        lambda: source.bind("default", MODEL),
        lambda: source.bind("new", MODEL),
        lambda: source.purge("other", [shared.id], actor="test", reason=None),
    ):
        with pytest.raises(BankMoved, match=r"was moved to .*: open the bank there"):
            change()
    assert source.nearest("default", KeyKind.INPUT, unit(1, 0, 0, 0), 1) == [hit]
    target.record_use(use_of(memory.id))
    again = move(source, target, actor="test")
    assert (again.rows, again.moved) == ({}, False)


def test_there_and_back_again(source: Bank, target: Bank) -> None:
    move(source, target, actor="test")
    [memory] = target.memories("other")
    target.purge("other", [memory.id], actor="test", reason=None)
    target.bind("new", MODEL)
    before = content(target)
    report = move(target, source, actor="test")
    after = content(source)
    assert report.moved
    for name in before.keys() - {"events"}:
        assert after[name] == before[name], name
    assert list(source.tensors.digests("other")) == []
    check_whole(source)
    source.record_use(use_of(source.memories("default")[0].id))
    with pytest.raises(BankMoved):
        target.record_use(use_of(source.memories("default")[0].id))


def test_a_writer_goes_on_meanwhile_and_nothing_that_was_acknowledged_is_lost(
    opened: Open, database_url: str, tmp_path: Path
) -> None:
    source = filled(opened(database_url, "tensors-of-source"))
    target = opened(f"sqlite:///{tmp_path / 'target.sqlite'}", "tensors-of-target")
    acknowledged: list[Any] = []
    refused: list[BankMoved] = []
    [memory] = source.memories("other")

    def write() -> None:
        learn = learner_of_unique(source)
        try:
            for number in range(10_000):
                acknowledged.append(learn(number))
                use = use_of(memory.id, home="other")
                source.record_use(use)
                acknowledged.append(use.id)
        except BankMoved as error:
            refused.append(error)

    writer = threading.Thread(target=write)

    def observe(name: str, detail: dict[str, Any]) -> None:
        if name == "move.batch" and not writer.is_alive() and not acknowledged:
            writer.start()
        if name == "move.pass" and detail["number"] == 1:
            until = threading.Event()
            while len(acknowledged) < 6 and not until.wait(0.01):
                pass

    move(source, target, actor="test", observe=observe)
    writer.join(60)
    assert len(refused) == 1
    there = {m.id for m in target.memories("default")} | {use.id for use in target.uses("default")}
    assert len(acknowledged) >= 6
    assert set(acknowledged) <= there
    check_whole(target)


def learner_of_unique(bank: Bank) -> Callable[[int], str]:
    from bank_helpers import trained

    def learn(number: int) -> str:
        bank.jobs.enqueue("default", f"while it moves {number}", task="math", model_id=MODEL.id, recipe=RECIPE)
        while True:
            lease = bank.jobs.claim("worker", lease_seconds=60)
            assert lease is not None
            made = bank.publish(
                lease,
                trained(unit(number + 1, 1, 1, 1), seed=1000 + number),
                task="math",
                model=MODEL,
                recipe=RECIPE,
                state=MemoryState.ACTIVE,
                reason=None,
            )
            return made.id

    return learn


def test_what_is_purged_meanwhile_leaves_nothing_behind(source: Bank, target: Bank) -> None:
    victim = next(memory for memory in source.memories("default") if memory.state == MemoryState.RETIRED)

    def observe(name: str, detail: dict[str, Any]) -> None:
        if name == "move.pass" and detail["number"] == 1:
            assert victim.id in {memory.id for memory in target.memories("default")}
            source.purge("default", [victim.id], actor="test", reason="private")

    move(source, target, actor="test", observe=observe)
    assert victim.id not in {memory.id for memory in target.memories("default")}
    assert victim.tensor_digest not in set(target.tensors.digests("default"))
    assert victim.id in {stone.memory_id for stone in target.tombstones("default")}
    with target.database.read() as session:
        for table in TABLES:
            if "question" in table.c:
                assert victim.question not in set(session.scalars(text(f"SELECT question FROM {table.name}")))
    check_whole(target)


@pytest.mark.parametrize("step", MOVE_STEPS)
def test_stopped_at_any_step_it_goes_on(source: Bank, target: Bank, step: str) -> None:
    before = content(source)
    heard = []

    def stop(name: str, _detail: dict[str, Any]) -> None:
        heard.append(name)
        if name == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        move(source, target, actor="test", observe=stop)
    both_take_changes = [taken(bank) for bank in (source, target)]
    assert sum(both_take_changes) <= 1, "two banks would drift apart"
    move(source, target, actor="test")
    after = content(target)
    for name in before.keys() - {"events", "uses"}:
        assert after[name] == before[name], name
    moved = [event.kind for event in after["events"][0]].count(EventKind.MOVED)
    assert moved == 1
    check_whole(target)


def taken(bank: Bank) -> bool:
    """Whether the bank takes changes of a namespace that it has."""
    try:
        bank.note_event("default", EventKind.REVIEWED, actor="test", detail={})
    except (BankMoved, LookupError):
        return False
    return True


def test_a_copy_leaves_the_source_as_it_is(source: Bank, target: Bank) -> None:
    before = content(source)
    report = move(source, target, actor="test", keep=True)
    assert not report.moved
    assert content(source) == before
    assert [event.kind for event in target.events("default")][-1] == EventKind.MOVED
    assert target.events("default")[-1].detail == {"copy_of": before["events"][0][-1].digest}
    assert taken(source)
    assert taken(target)
    check_whole(target)
    with pytest.raises(InputError, match=r"namespace 'default' is in the target .* already"):
        move(source, target, actor="test", keep=True)


def test_a_dry_run_only_counts(source: Bank, target: Bank) -> None:
    report = move(source, target, actor="test", dry_run=True)
    assert (report.rows["memories"], report.tensors, report.moved) == (5, 5, False)
    assert target.namespaces() == []
    assert list(target.tensors.digests("default")) == []


def test_a_copy_that_is_not_what_was_copied_is_refused(source: Bank, opened: Open, tmp_path: Path) -> None:
    target = opened(f"sqlite:///{tmp_path / 'target.sqlite'}", "tensors-of-target")
    trigger = "CREATE TRIGGER t AFTER INSERT ON jobs BEGIN UPDATE jobs SET question = 'x' WHERE id = new.id; END"

    def tamper(name: str, _detail: dict[str, Any]) -> None:
        if name == "move.pass":
            source.jobs.enqueue("default", "a late one", task="math", model_id=MODEL.id, recipe=RECIPE)
            with target.database.write() as session:
                session.execute(text(trigger))

    with pytest.raises(StorageError, match=r"the copy is not what was copied: jobs come back from sqlite.* altered"):
        move(source, target, actor="test", observe=tamper)
    assert taken(source)
    assert not taken(target)


def test_a_broken_chain_stays_where_it_is(source: Bank, target: Bank) -> None:
    with source.database.write() as session:
        session.execute(
            text("UPDATE events SET actor = 'somebody else' WHERE revision = 2 AND namespace = 'default'")
        )
    with pytest.raises(StorageError, match="ledger of namespace 'default' is broken at event 2"):
        move(source, target, actor="test")
    assert target.namespaces() == []


def test_a_tensor_that_the_source_has_lost_is_reported(source: Bank, target: Bank) -> None:
    lost = source.memories("default")[0]
    source.tensors.delete("default", lost.tensor_digest)
    report = move(source, target, actor="test")
    assert report.missing == (("default", lost.tensor_digest),)
    assert len(target.memories("default")) == 4


def test_another_model_in_the_target_is_refused(source: Bank, target: Bank) -> None:
    target.bind("other", ModelFingerprint("huge", "sha256:x", "sha256:t", "sha256:c", 4))
    with pytest.raises(ModelMismatch, match="namespace 'other' is in the target already, for model 'huge'"):
        move(source, target, actor="test")


def test_the_same_database_is_refused(source: Bank, opened: Open, tmp_path: Path) -> None:
    same = opened(f"sqlite:///{tmp_path / 'x' / '..' / 'source.sqlite'}", "elsewhere")
    with pytest.raises(InputError, match="the same database"):
        move(source, same, actor="test")


def test_an_empty_bank_is_refused(opened: Open, tmp_path: Path) -> None:
    empty = opened(f"sqlite:///{tmp_path / 'empty.sqlite'}", "a")
    with pytest.raises(InputError, match="nothing to move"):
        move(empty, opened(f"sqlite:///{tmp_path / 'other.sqlite'}", "b"), actor="test")


def test_a_third_place_is_refused(source: Bank, target: Bank, opened: Open, tmp_path: Path) -> None:
    move(source, target, actor="test")
    with pytest.raises(BankMoved, match="move it from there"):
        move(source, opened(f"sqlite:///{tmp_path / 'third.sqlite'}", "c"), actor="test")


def test_other_namespaces_of_the_target_are_left_alone(source: Bank, target: Bank) -> None:
    target.bind("theirs", MODEL)
    made = learner(target)("their question", unit(1, 1, 1, 1), namespace="theirs")
    move(source, target, actor="test")
    assert [memory.id for memory in target.memories("theirs")] == [made.id]
    assert target.prompt("theirs", made.id).width == 4


def test_a_tally_does_not_depend_on_order_and_sees_every_value() -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": b"x"}, {"a": 2, "b": b"y"}]
    both = Tally().with_row(rows[0]).with_row(rows[1])
    assert both == Tally().with_row(rows[1]).with_row(rows[0])
    assert both != Tally().with_row(rows[0]).with_row({"a": 2, "b": b"z"})
    assert both != Tally().with_row(rows[0])


def test_rows_whose_parents_are_late_come_with_the_next_pass(source: Bank, target: Bank) -> None:
    copy = RowCopy(target.database, ["default", "other"], mark="here", paged=lambda *_: None)
    read = source.database.read
    reads = 0

    def read_and_learn() -> Any:
        """A memory comes when the episodes were copied already."""
        nonlocal reads
        reads += 1
        if reads == 1 + [table.name for table in TABLES].index("memories"):
            late.append(learner_of_unique(source)(0))
        return read()

    late: list[str] = []
    copy.once(read_and_learn, strict=False)
    assert late[0] not in {memory.id for memory in target.memories("default")}
    assert copy.once(read, strict=True)[0] > 0
    assert late[0] in {memory.id for memory in target.memories("default")}
    assert copy.once(read, strict=True)[0] == 0
