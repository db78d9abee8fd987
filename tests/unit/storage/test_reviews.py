"""What waits for a person and what becomes of their word, on both databases; the migration that made room for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bank_helpers import MODEL, RECIPE, trained, unit
from sqlalchemy import inspect, text
from test_migrations import to_version

from elm_agent.bench.filling import use_of
from elm_agent.errors import ChangedMeanwhile, InputError, NotFound
from elm_agent.memory.reviewing import chosen, decide, look, undo
from elm_agent.records import (
    AWAITS_REVIEW,
    Effect,
    EventKind,
    Feedback,
    KeyKind,
    MemoryRecord,
    MemoryState,
    Review,
    Route,
    UseRecord,
)
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.ledger import chain
from elm_agent.storage.posterior import HarmRule, Weights
from elm_agent.storage.sql.database import Database, connect_only
from elm_agent.testing.memory_stores import MemoryTensors

X = unit(1, 0, 0, 0)
WAIT, YES, NO = Review.WAITING, Review.APPROVED, Review.REJECTED


@pytest.fixture
def bank(database_url: str) -> Iterator[Bank]:
    harm = HarmRule(probability=0.9, uses=3, weights=Weights())
    opened = Bank(Database.open(database_url), MemoryTensors(), index="exact", shared=["shared"], harm=harm)
    for name in ("default", "other", "shared"):
        opened.bind(name, MODEL)
    yield opened
    opened.close()


def waits(bank: Bank, question: str = "one", namespace: str = "default") -> MemoryRecord:
    """A memory that waits."""
    bank.jobs.enqueue(namespace, question, task="math", model_id=MODEL.id, recipe=RECIPE)
    lease = bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    return bank.publish(
        lease,
        trained(X, seed=len(question)),
        task="math",
        model=MODEL,
        recipe=RECIPE,
        state=MemoryState.CANDIDATE,
        reason=AWAITS_REVIEW,
        admission={"review": WAIT.value},
        review=WAIT,
    )


def serves(bank: Bank, question: str = "one", namespace: str = "default") -> str:
    memory_id = waits(bank, question, namespace).id
    bank.reviews.decide_memory(namespace, memory_id, YES, actor="ada")
    return memory_id


def differs(bank: Bank, memory_id: str, name: str = "use_1", home: str = "") -> UseRecord:
    """A use whose memory answered 56 while 54 was returned, and that waits."""
    use = use_of(
        "default",
        memory_id,
        id=name,
        memory_namespace=home,
        route=Route.DEFERRED,
        answer="54",
        memory_answer="56",
        zero_shot_answer="54",
        review=WAIT,
    )
    bank.record_use(use)
    return bank.use("default", name)


def found(bank: Bank) -> list[str]:
    return [hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, X, 5)]


def sound(bank: Bank) -> bool:
    return examine(bank).findings == () and chain.verify(bank.database, "default").broken is None


# --- memories -------------------------------------------------------------------------------------------------


def test_what_waits_is_a_candidate_in_the_queue(bank: Bank) -> None:
    memory = waits(bank)
    assert (memory.state, memory.reason, memory.review) == (MemoryState.CANDIDATE, "awaits review", WAIT)
    second, other = waits(bank, "second"), waits(bank, "elsewhere", "other")
    assert [one.id for one in bank.reviews.memories("default")] == [memory.id, second.id]
    assert [one.id for one in bank.reviews.memories("default", limit=1)] == [memory.id]
    assert [one.id for one in bank.reviews.memories("default", after=memory.id)] == [second.id]
    assert found(bank) == []
    assert {name: (one.memories, one.answers) for name, one in bank.reviews.waiting().items()} == {
        "default": (2, 0),
        "other": (1, 0),
    }
    assert bank.reviews.count("default").memories == 2
    (gated,) = bank.events("default", memory.id, kind=EventKind.GATED)
    assert (gated.detail["review"], gated.note) == ("waiting", "awaits review")
    assert other.id not in {one.id for one in bank.reviews.memories("default")}
    with pytest.raises(NotFound, match="namespace 'nowhere' is not in this bank"):
        bank.reviews.memories("nowhere")
    assert sound(bank)


def test_what_is_approved_serves_and_is_an_event(bank: Bank) -> None:
    memory = waits(bank)
    decided = bank.reviews.decide_memory("default", memory.id, YES, actor="ada", note="it is right")
    assert (decided.state, decided.reason, decided.review) == (MemoryState.ACTIVE, "it is right", YES)
    assert found(bank) == [memory.id]
    last = bank.events("default", memory.id)[-1]
    assert (last.kind, last.actor, last.note) == (EventKind.ACTIVATED, "ada", "it is right")
    assert last.detail == {"from": "candidate", "to": "active", "review": "approved"}
    assert (bank.reviews.memories("default"), bank.reviews.waiting()) == ([], {})
    assert [one.id for one in bank.reviews.memories("default", YES)] == [memory.id]
    assert sound(bank)


def test_what_is_rejected_is_retired_and_can_be_taken_back(bank: Bank) -> None:
    memory = waits(bank)
    rejected = bank.reviews.decide_memory("default", memory.id, NO, actor="ada")
    assert (rejected.state, rejected.reason) == (MemoryState.RETIRED, "rejected by a review")
    again = bank.reviews.reopen_memory("default", memory.id, actor="ben")
    assert (again.state, again.reason, again.review) == (MemoryState.CANDIDATE, "awaits review", WAIT)
    assert [one.id for one in bank.reviews.memories("default")] == [memory.id]
    assert sound(bank)
    bank.reviews.decide_memory("default", memory.id, YES, actor="ada")
    assert found(bank) == [memory.id]
    bank.reviews.reopen_memory("default", memory.id, actor="ben")
    assert found(bank) == []
    kinds = [(event.kind, event.detail.get("review")) for event in bank.events("default", memory.id)[2:]]
    assert kinds == [("evicted", "rejected"), ("gated", "waiting"), ("activated", "approved"), ("gated", "waiting")]
    assert sound(bank)


def test_the_second_of_two_is_told(bank: Bank) -> None:
    memory = waits(bank)
    bank.reviews.decide_memory("default", memory.id, YES, actor="ada", expected=memory.revision)
    with pytest.raises(ChangedMeanwhile, match=r"was changed on .* nothing was done"):
        bank.reviews.decide_memory("default", memory.id, NO, actor="ben", expected=memory.revision)
    with pytest.raises(ChangedMeanwhile, match=f"memory {memory.id} was approved by somebody already"):
        bank.reviews.decide_memory("default", memory.id, NO, actor="ben")
    assert bank.memory("default", memory.id).state is MemoryState.ACTIVE
    bank.reviews.reopen_memory("default", memory.id, actor="ada")
    with pytest.raises(ChangedMeanwhile, match="waits for a review already"):
        bank.reviews.reopen_memory("default", memory.id, actor="ben")


def test_what_is_changed_in_another_way_waits_no_more(bank: Bank) -> None:
    """Restored, evicted or quarantined by hand: whoever did that knew of it."""
    memory = waits(bank)
    changed = bank.transition("default", memory.id, MemoryState.ACTIVE, actor="ada", reason=None)
    assert (changed.review, bank.reviews.memories("default")) == (None, [])
    for verdict in (YES, NO):
        with pytest.raises(InputError, match="does not wait for a review: `elm-agent review list`"):
            bank.reviews.decide_memory("default", memory.id, verdict, actor="ben")
    with pytest.raises(InputError, match="there is nothing to take back"):
        bank.reviews.reopen_memory("default", memory.id, actor="ben")
    with pytest.raises(InputError, match="a verdict is approved or rejected; got waiting"):
        bank.reviews.decide_memory("default", memory.id, WAIT, actor="ben")
    evicted = waits(bank, "two")
    bank.reviews.decide_memory("default", evicted.id, YES, actor="ada")
    bank.evict("default", {evicted.id: "it is old"}, actor="ben")
    with pytest.raises(InputError, match="there is nothing to take back"):
        bank.reviews.reopen_memory("default", evicted.id, actor="ada")


def test_only_a_candidate_waits(bank: Bank) -> None:
    bank.jobs.enqueue("default", "one", task="math", model_id=MODEL.id, recipe=RECIPE)
    lease = bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    with pytest.raises(InputError, match="waits for a review is a candidate; got waiting and active"):
        bank.publish(
            lease,
            trained(X),
            task="math",
            model=MODEL,
            recipe=RECIPE,
            state=MemoryState.ACTIVE,
            reason=None,
            review=WAIT,
        )
    assert bank.memories("default") == []


def test_a_pinned_memory_is_not_rejected(bank: Bank) -> None:
    memory = waits(bank)
    bank.pin("default", memory.id, True, actor="ada")
    with pytest.raises(InputError, match="is pinned: unpin it"):
        bank.reviews.decide_memory("default", memory.id, NO, actor="ben")
    assert bank.memory("default", memory.id).review is WAIT


# --- answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "word", "right", "effect"),
    [(YES, Feedback.WRONG, "56", Effect.HELPED), (NO, Feedback.RIGHT, None, Effect.HURT)],
)
def test_a_decision_about_an_answer_is_feedback(
    bank: Bank, verdict: Review, word: Feedback, right: str | None, effect: Effect
) -> None:
    memory = serves(bank)
    use = differs(bank, memory)
    assert [one.id for one in bank.reviews.answers("default")] == [use.id]
    assert bank.reviews.count("default").answers == 1
    (before,) = bank.posteriors("default", [("default", memory)]).values()
    assert (before.helped, before.hurt) == (1.25, 1.0), "the verifier preferred the memory's"
    decided = bank.reviews.decide_answer("default", use.id, verdict, actor="ada", note="I know it")
    assert (decided.review, decided.feedback, decided.feedback_answer) == (verdict, word, right)
    assert decided.feedback_effect is effect
    (after,) = bank.posteriors("default", [("default", memory)]).values()
    assert (after.helped, after.hurt) == ((2.0, 1.0) if verdict is YES else (1.0, 2.0))
    last = bank.events("default", memory)[-1]
    assert (last.kind, last.actor, last.note) == (EventKind.REVIEWED, "ada", None)
    assert decided.review_note == "I know it"
    assert last.detail == {"review": verdict.value, "use_id": use.id}
    assert bank.reviews.answers("default") == []
    assert [one.id for one in bank.reviews.answers("default", verdict)] == [use.id]
    with pytest.raises(ChangedMeanwhile, match=f"use {use.id} was {verdict} by somebody already"):
        bank.reviews.decide_answer("default", use.id, YES, actor="ben")
    assert sound(bank)


def test_a_decision_about_an_answer_is_taken_back(bank: Bank) -> None:
    memory = serves(bank)
    use = differs(bank, memory)
    bank.reviews.decide_answer("default", use.id, YES, actor="ada")
    again = bank.reviews.reopen_answer("default", use.id, actor="ada")
    assert again == use
    assert [one.id for one in bank.reviews.answers("default")] == [use.id]
    assert bank.events("default", memory)[-1].detail == {"review": "waiting", "use_id": use.id}
    (worth,) = bank.posteriors("default", [("default", memory)]).values()
    assert worth.helped == 1.25
    bank.reviews.decide_answer("default", use.id, NO, actor="ben")
    assert bank.use("default", use.id).feedback_effect is Effect.HURT
    plain = use_of("default", memory, id="use_plain")
    bank.record_use(plain)
    for change in (bank.reviews.reopen_answer, lambda *a, **k: bank.reviews.decide_answer(*a, YES, **k)):
        with pytest.raises(InputError):
            change("default", plain.id, actor="ada")


def test_what_harms_by_a_persons_word_is_quarantined(bank: Bank) -> None:
    memory = serves(bank)
    for n in range(3):
        use = differs(bank, memory, f"use_{n}")
        bank.reviews.decide_answer("default", use.id, NO, actor="ada")
    assert bank.memory("default", memory).state is MemoryState.QUARANTINED


def test_of_a_shared_memory_the_word_stays_in_ones_own_chain(bank: Bank) -> None:
    memory = serves(bank, "lent", "shared")
    before = bank.memory("shared", memory)
    use = differs(bank, memory, home="shared")
    decide(bank, "default", use.id, YES, actor="ada")
    (event,) = bank.events("default", kind=EventKind.REVIEWED)
    assert event.memory_id is None
    assert (event.detail["memory_id"], event.detail["memory_namespace"]) == (memory, "shared")
    assert bank.memory("shared", memory).revision == before.revision
    assert chain.verify(bank.database, "shared").broken is None
    assert sound(bank)


@pytest.mark.parametrize(("verdict", "route"), [(YES, Route.MEMORY), (NO, Route.ZERO_SHOT)])
def test_a_use_that_a_person_chose_is_one_use_and_one_event(bank: Bank, verdict: Review, route: Route) -> None:
    memory = serves(bank)
    plain = use_of("default", memory, id="use_1", route=route, memory_answer="56", zero_shot_answer="54")
    use = chosen(replace(plain, answer="56" if verdict is YES else "54"), verdict, "so it is")
    for _ in range(2):  # a node that ran twice
        bank.record_use(use)
    noted = bank.use("default", use.id)
    assert (noted.review, noted.review_note, noted.feedback) == (verdict, "so it is", Feedback.RIGHT)
    assert noted.feedback_effect is (Effect.HELPED if verdict is YES else Effect.HURT)
    (event,) = bank.events("default", kind=EventKind.REVIEWED)
    assert (event.actor, event.note, event.detail["review"]) == ("agent", None, verdict.value)
    gone = replace(use, id="use_2", memory_id="mem_unknown")
    with pytest.raises(NotFound, match="no memory 'mem_unknown'"):
        bank.record_use(gone)
    assert len(bank.events("default", kind=EventKind.REVIEWED)) == 1
    assert sound(bank)


def test_a_users_word_leaves_it_in_the_queue(bank: Bank) -> None:
    use = differs(bank, serves(bank))
    bank.note_feedback("default", use.id, Feedback.WRONG, effect=Effect.PERHAPS_HELPED)
    (waiting,) = bank.reviews.answers("default")
    assert (waiting.feedback, waiting.review) == (Feedback.WRONG, WAIT)
    assert decide(bank, "default", use.id, NO, actor="ada").review is NO
    assert bank.use("default", use.id).feedback is Feedback.RIGHT


def test_a_purge_takes_what_waits_along(bank: Bank) -> None:
    memory = serves(bank)
    differs(bank, memory)
    bank.purge("default", [memory, waits(bank, "two").id], actor="ada", reason=None)
    assert bank.reviews.waiting() == {}


def test_by_an_id_of_either_kind(bank: Bank) -> None:
    memory = waits(bank)
    assert look(bank, "default", memory.id).review is WAIT
    assert decide(bank, "default", memory.id, YES, actor="ada", note="  ").memory is not None
    use = differs(bank, memory.id)
    assert look(bank, "default", use.id).question == use.question
    assert decide(bank, "default", use.id, YES, actor="ada").use is not None
    assert undo(bank, "default", use.id, actor="ada").review is WAIT
    for id in ("mem_x", "use_x"):
        with pytest.raises(NotFound, match=id):
            decide(bank, "default", id, YES, actor="ada")
    with pytest.raises(NotFound):
        decide(bank, "other", memory.id, NO, actor="ada")
    with pytest.raises(InputError, match="a note has at most 2000 characters; got 2001"):
        decide(bank, "default", use.id, YES, actor="ada", note="a" * 2001)


# --- the database ---------------------------------------------------------------------------------------------


def test_up_from_the_fifth_schema_and_down_again(database_url: str) -> None:
    to_version(database_url, "0005")
    engine = connect_only(database_url)
    try:
        for table in ("memories", "uses"):
            assert "review" not in {column["name"] for column in inspect(engine).get_columns(table)}
        bank = Bank(Database.open(database_url), MemoryTensors(), index="exact")
        bank.bind("default", MODEL)
        memory = serves(bank)
        differs(bank, memory)
        waiting = waits(bank, "two").id
        bank.close()
        to_version(database_url, "0005")
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT route FROM uses")) == "zero_shot"
        for table in ("memories", "uses"):
            assert "review" not in {column["name"] for column in inspect(engine).get_columns(table)}
            assert f"ix_{table}_review" not in {index["name"] for index in inspect(engine).get_indexes(table)}
        bank = Bank(Database.open(database_url), MemoryTensors(), index="exact")
        assert bank.memory("default", waiting).state is MemoryState.CANDIDATE
        assert bank.reviews.waiting() == {}
        assert chain.verify(bank.database, "default").broken is None
        bank.close()
    finally:
        engine.dispose()


def test_the_queue_is_read_by_its_index(tmp_path: Path) -> None:
    file = tmp_path / "bank.sqlite"
    Database.open(f"sqlite:///{file}").close()
    connection = sqlite3.connect(file)
    for table in ("memories", "uses"):
        for query in (
            f"SELECT id FROM {table} WHERE namespace = ? AND review = ? ORDER BY id LIMIT 26",
            f"SELECT count(*) FROM {table} WHERE namespace = ? AND review = ?",
        ):
            (line,) = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", ("default", "waiting"))]
            assert f"ix_{table}_review" in line, line
    connection.close()
