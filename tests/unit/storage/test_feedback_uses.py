"""What users say, kept with the use: once, replaceable, behind walls; and the quarantine that follows from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from bank_helpers import MODEL, Learn, learner, unit
from sqlalchemy import select
from vault_helpers import FIRST, masters

from elm_agent.bench.filling import use_of
from elm_agent.errors import InputError, NotFound, VaultLocked
from elm_agent.records import Effect, EventKind, Feedback, KeyKind, MemoryState, Route, UseOutcome, UseRecord
from elm_agent.storage.bank import Bank
from elm_agent.storage.harm import ACTOR
from elm_agent.storage.ledger import chain
from elm_agent.storage.posterior import HarmRule, Weights
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import UseRow
from elm_agent.storage.uses import FEEDBACK_STEPS
from elm_agent.storage.vault.encrypted import EncryptedVault
from elm_agent.testing.memory_stores import MemoryTensors

X, Y = unit(1, 0, 0, 0), unit(0, 1, 0, 0)
RULE = HarmRule(probability=0.9, uses=3, weights=Weights())


@pytest.fixture
def watched(database_url: str) -> Iterator[Bank]:
    """A bank that quarantines what harms; ``default`` is shared with ``mine``."""
    bank = Bank(Database.open(database_url), MemoryTensors(), index="exact", shared=["default"], harm=RULE)
    for name in ("default", "mine"):
        bank.bind(name, MODEL)
    yield bank
    bank.close()


def used(bank: Bank, memory_id: str, *, namespace: str = "default", route: Route = Route.MEMORY) -> UseRecord:
    """One use of a memory of ``default``."""
    home = "" if namespace == "default" else "default"
    use = use_of(namespace, memory_id, memory_namespace=home, route=route)
    bank.record_use(use)
    return use


def say(bank: Bank, memory_id: str, effect: Effect, *, namespace: str = "default") -> UseRecord:
    use = used(bank, memory_id, namespace=namespace)
    bank.note_feedback(namespace, use.id, Feedback.WRONG, effect=effect)
    return use


def worth(bank: Bank, memory_id: str, namespace: str = "default") -> tuple[float, float, float]:
    [found] = bank.posteriors(namespace, [("default", memory_id)]).values()
    return found.helped, found.same, found.hurt


# --- the word itself ----------------------------------------------------------------------------------------


def test_a_word_is_recorded_once_and_another_replaces_it(bank: Bank, learn: Learn) -> None:
    memory = learn("q", X)
    use = used(bank, memory.id)
    assert worth(bank, memory.id) == (1.25, 1, 1)  # so far only the verifier has spoken
    first = bank.note_feedback("default", use.id, Feedback.WRONG, effect=Effect.PERHAPS_HURT)
    assert (first.changed, first.replaced) == (True, False)
    assert worth(bank, memory.id) == (1, 1.5, 1.5)
    again = bank.note_feedback("default", use.id, Feedback.WRONG, effect=Effect.PERHAPS_HURT)
    assert (again.changed, again.replaced) == (False, False)
    assert again.use == first.use, "not even its time changed"
    other = bank.note_feedback("default", use.id, Feedback.RIGHT, effect=Effect.HELPED)
    assert (other.changed, other.replaced, other.before) == (True, True, first.use)
    assert worth(bank, memory.id) == (2, 1, 1)
    answered = bank.note_feedback("default", use.id, Feedback.RIGHT, answer="7", effect=Effect.HELPED)
    assert (answered.replaced, answered.use.feedback_answer) == (True, "7")
    assert bank.use("default", use.id) == answered.use
    assert bank.memory("default", memory.id).uses == 1


def test_a_reference_answer_outweighs_the_user(bank: Bank, learn: Learn) -> None:
    memory = learn("q", X)
    use = used(bank, memory.id)
    bank.note_feedback("default", use.id, Feedback.WRONG, effect=Effect.HURT)
    bank.settle_use("default", use.id, UseOutcome.FIXED)
    assert worth(bank, memory.id) == (2, 1, 1)


def test_unknown_uses_are_refused_in_one_sentence(bank: Bank) -> None:
    for call in (
        lambda: bank.note_feedback("default", "use_x", Feedback.RIGHT),
        lambda: bank.use("default", "use_x"),
    ):
        with pytest.raises(NotFound, match="no use 'use_x' in namespace 'default': `elm-agent ask` names it"):
            call()


def test_what_is_broken_off_before_the_commit_leaves_nothing(bank: Bank, learn: Learn) -> None:
    memory = learn("q", X)
    use = used(bank, memory.id)
    told = []

    def die(step: str, _detail: object) -> None:
        told.append(step)
        if step == FEEDBACK_STEPS[0]:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        bank.note_feedback("default", use.id, Feedback.WRONG, effect=Effect.HURT, observe=die)
    assert bank.use("default", use.id) == use
    bank.note_feedback("default", use.id, Feedback.WRONG, effect=Effect.HURT, observe=lambda s, _d: told.append(s))
    assert told == [FEEDBACK_STEPS[0], *FEEDBACK_STEPS]


def test_two_words_at_once_are_one_word(bank: Bank, learn: Learn) -> None:
    """Eight threads, right and wrong: one stands, each other was replaced or repeated, the posterior has one use."""
    memory = learn("q", X)
    use = used(bank, memory.id)
    start = threading.Barrier(8)

    def speak(n: int) -> tuple[bool, bool]:
        start.wait()
        word, effect = ((Feedback.RIGHT, Effect.HELPED), (Feedback.WRONG, Effect.HURT))[n % 2]
        noted = bank.note_feedback("default", use.id, word, effect=effect)
        assert noted.use.feedback is word, "what was said last is what is told"
        return noted.changed, noted.replaced

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(speak, range(8)))
    changed = sum(one for one, _ in told)
    assert 2 <= changed <= 8
    assert sum(replaced for _, replaced in told) == changed - 1, "all but the first replaced something"
    last = bank.use("default", use.id).feedback
    assert worth(bank, memory.id) == ((2, 1, 1) if last is Feedback.RIGHT else (1, 1, 2))


def test_the_right_answer_is_sealed_and_read_again(database_url: str) -> None:
    database = Database.open(database_url)
    bank = Bank(database, MemoryTensors(), index="exact", vault=EncryptedVault(database, masters(FIRST)))
    bank.bind("default", MODEL)
    memory = learner(bank)("q", X)
    use = used(bank, memory.id)
    bank.note_feedback("default", use.id, Feedback.WRONG, answer="forty-two", effect=Effect.HURT)
    assert bank.use("default", use.id).feedback_answer == "forty-two"
    with database.read() as session:
        assert "forty" not in str(session.scalars(select(UseRow.feedback_answer)).one())
    unlocked = Bank(Database.open(database_url), MemoryTensors(), index="exact")
    with pytest.raises(VaultLocked):
        unlocked.note_feedback("default", use.id, Feedback.RIGHT)
    unlocked.close()
    bank.close()


# --- walls --------------------------------------------------------------------------------------------------


def test_a_third_namespace_changes_nothing_here(watched: Bank) -> None:
    """Of a shared memory count one's own uses and those of where it lives."""
    memory = learner(watched)("q", X)
    watched.bind("third", MODEL)
    theirs = say(watched, memory.id, Effect.HURT, namespace="third")
    say(watched, memory.id, Effect.HELPED, namespace="mine")
    say(watched, memory.id, Effect.SAME)
    assert worth(watched, memory.id, "mine") == (2, 2, 1)
    assert worth(watched, memory.id, "third") == (1, 2, 2)
    assert worth(watched, memory.id) == (1, 2, 1)
    for name in ("mine", "default"):
        with pytest.raises(NotFound):
            watched.note_feedback(name, theirs.id, Feedback.RIGHT)
    assert watched.use("third", theirs.id).feedback is Feedback.WRONG
    with pytest.raises(InputError, match="not shared"):
        watched.posteriors("mine", [("third", memory.id)])


def test_who_only_reads_a_memory_cannot_quarantine_it(watched: Bank) -> None:
    memory = learner(watched)("q", X)
    for _ in range(9):
        say(watched, memory.id, Effect.HURT, namespace="mine")
    assert watched.memory("default", memory.id).state is MemoryState.ACTIVE
    assert [event.kind for event in watched.events("default")][-1] is EventKind.ACTIVATED


# --- quarantine ---------------------------------------------------------------------------------------------


def test_a_harmful_memory_is_quarantined_and_can_be_restored(watched: Bank) -> None:
    memory = learner(watched)("q", X)
    for _ in range(2):
        say(watched, memory.id, Effect.HURT)
    assert watched.memory("default", memory.id).state is MemoryState.ACTIVE, "2 uses are too few"
    say(watched, memory.id, Effect.HURT)
    found = watched.memory("default", memory.id)
    reason = "harmful with probability 0.9375, at least 0.9: helped 0, no difference 0, hurt 3 in 3 uses"
    assert (found.state, found.reason) == (MemoryState.QUARANTINED, reason)
    event = watched.events("default")[-1]
    assert (event.kind, event.actor, event.note) == (EventKind.QUARANTINED, ACTOR, reason)
    assert watched.nearest("default", KeyKind.INPUT, X, 1) == []
    # brought back, it is judged anew: one more harm is not enough
    watched.transition("default", memory.id, MemoryState.ACTIVE, actor="ada", reason="it is fine")
    say(watched, memory.id, Effect.HURT)
    assert watched.memory("default", memory.id).state is MemoryState.ACTIVE
    assert worth(watched, memory.id) == (1, 1, 5), "for the ranking all of them count"
    for _ in range(2):
        say(watched, memory.id, Effect.HURT)
    assert watched.memory("default", memory.id).state is MemoryState.QUARANTINED
    assert chain.verify(watched.database, "default").broken is None


def test_a_review_that_keeps_it_and_a_pin_hold_the_quarantine_off(watched: Bank) -> None:
    learn = learner(watched)
    reviewed, pinned, plain = learn("a", X), learn("b", Y), learn("c", X)
    watched.pin("default", pinned.id, True, actor="ada")
    for memory in (reviewed, pinned, plain):
        for _ in range(2):
            say(watched, memory.id, Effect.HURT)
    watched.review("default", reviewed.id, actor="ada", verdict="keep", note=None)
    for memory in (reviewed, pinned, plain):
        say(watched, memory.id, Effect.HURT)
    states = [watched.memory("default", memory.id).state for memory in (reviewed, pinned, plain)]
    assert states == [MemoryState.ACTIVE, MemoryState.ACTIVE, MemoryState.QUARANTINED]


def test_every_way_of_telling_judges(watched: Bank) -> None:
    """A settled outcome, and the verifier alone, which counts a quarter."""
    learn = learner(watched)
    settled, refused, preferred = learn("a", X), learn("b", Y), learn("c", X)
    for _ in range(3):
        watched.settle_use("default", used(watched, settled.id).id, UseOutcome.BROKEN)
    assert watched.memory("default", settled.id).state is MemoryState.QUARANTINED
    while watched.memory("default", refused.id).state is MemoryState.ACTIVE:
        used(watched, refused.id, route=Route.ZERO_SHOT)
        used(watched, preferred.id)
    assert (
        watched.memory("default", refused.id).uses == 10
    )  # Beta(1 + 10 / 4, 1): 1 - 2^-3.5 is 0.912, with 9 it is 0.895
    assert watched.memory("default", preferred.id).state is MemoryState.ACTIVE


def test_a_word_that_is_taken_back_in_time_saves_it(watched: Bank) -> None:
    memory = learner(watched)("q", X)
    first = say(watched, memory.id, Effect.HURT)
    say(watched, memory.id, Effect.HURT)
    watched.note_feedback("default", first.id, Feedback.RIGHT, effect=Effect.HELPED)
    say(watched, memory.id, Effect.HURT)
    assert watched.memory("default", memory.id).state is MemoryState.ACTIVE


def test_of_words_at_once_none_is_missed(watched: Bank) -> None:
    """Each sees what was committed before it looked: together they are enough, so the last one acts; once."""
    memory = learner(watched)("q", X)
    uses = [used(watched, memory.id) for _ in range(4)]
    start = threading.Barrier(4)

    def speak(use: UseRecord) -> None:
        start.wait()
        watched.note_feedback("default", use.id, Feedback.WRONG, effect=Effect.HURT)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(speak, uses))
    assert watched.memory("default", memory.id).state is MemoryState.QUARANTINED
    assert len(watched.events("default", kind=EventKind.QUARANTINED)) == 1


def test_without_a_rule_nothing_is_quarantined(bank: Bank, learn: Learn) -> None:
    memory = learn("q", X)
    for _ in range(9):
        say(bank, memory.id, Effect.HURT)
    assert bank.memory("default", memory.id).state is MemoryState.ACTIVE


def test_a_judgement_that_fails_costs_no_use(
    watched: Bank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = learner(watched)("q", X)
    for _ in range(2):
        say(watched, memory.id, Effect.HURT)

    def fail(*_: object) -> bool:
        from elm_agent.errors import StoreBusy

        raise StoreBusy("somebody holds it")

    with monkeypatch.context() as patch:
        patch.setattr(watched._harm, "look", fail)
        use = say(watched, memory.id, Effect.HURT)
    assert "could not be judged, its next use will: somebody holds it" in caplog.text
    assert watched.use("default", use.id).feedback is Feedback.WRONG
    used(watched, memory.id)
    assert watched.memory("default", memory.id).state is MemoryState.QUARANTINED


def test_purging_a_memory_takes_what_was_said_of_it(bank: Bank, learn: Learn) -> None:
    memory = learn("q", X)
    use = say(bank, memory.id, Effect.HURT)
    bank.purge("default", [memory.id], actor="ada", reason=None)
    with pytest.raises(NotFound):
        bank.use("default", use.id)
    assert worth(bank, memory.id) == (1, 1, 1)
