"""What may be done to memories and their uses: taken in, changed, used, found, evicted, purged, forgotten."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from bank_beside_model import (
    MODEL,
    PAST,
    RECIPE,
    BankBesideModel,
    key,
    names,
    people,
    picks,
    questions,
    seeds,
    step,
    trained,
)
from bank_model import GOES, NAMES, SHARED, Memory, Use
from hypothesis import strategies as st
from hypothesis.stateful import precondition

from elm_agent.bench.filling import use_of
from elm_agent.errors import InputError, NotFound
from elm_agent.records import KeyKind, MemoryKeys, MemoryState, UseOutcome, UseRecord
from elm_agent.storage.bank import Adopted

_FUTURE = datetime(2100, 1, 1, tzinfo=UTC)

some = st.lists(picks, min_size=1, max_size=4)


class MemoryRules(BankBesideModel):
    @step(name=names, made_of=st.lists(seeds, min_size=1, max_size=4), question=questions)
    def adopt(self, name: str, made_of: list[int], question: str) -> None:
        state = MemoryState.ACTIVE if made_of[0] % 2 else MemoryState.CANDIDATE
        items = [_adopted(question, seed, state) for seed in made_of]
        for seed, (memory_id, created) in zip(made_of, self.bank.adopt(name, items, actor="test"), strict=True):
            known = self.model.same(name, seed)
            assert created == (not known)
            assert created or memory_id in known
            if created:
                self.model.memories[memory_id] = Memory(name, question, seed, state, question, question)
            self.touched.add(memory_id)

    @precondition(lambda self: self.model.memories)
    @step(pick=picks, to=st.sampled_from(MemoryState))
    def transition(self, pick: int, to: MemoryState) -> None:
        memory_id, memory = self.memory(pick)
        stays = memory.state is to
        if stays or ((memory.state, to) in GOES and not (to is MemoryState.RETIRED and memory.pinned)):
            self.bank.transition(memory.namespace, memory_id, to, actor="test", reason="so")
            memory.state = to
        else:
            with pytest.raises(InputError):
                self.bank.transition(memory.namespace, memory_id, to, actor="test", reason=None)

    @precondition(lambda self: self.model.memories)
    @step(some=some, name=names)
    def evict(self, some: list[int], name: str) -> None:
        asked = {one: memory for one, memory in map(self.memory, some) if memory.namespace == name}
        goes = [one for one, memory in asked.items() if not memory.pinned and memory.state is not MemoryState.RETIRED]
        reasons = dict.fromkeys([*self.touched, "mem_never"], "old")  # those of other namespaces too
        assert self.bank.evict(name, reasons, actor="policy") == sorted(goes)
        self.model.retire(goes)

    @precondition(lambda self: self.model.memories)
    @step(pick=picks, pinned=st.booleans())
    def pin(self, pick: int, pinned: bool) -> None:
        memory_id, memory = self.memory(pick)
        self.bank.pin(memory.namespace, memory_id, pinned, actor="test")
        memory.pinned = pinned

    @precondition(lambda self: self.model.memories)
    @step(pick=picks)
    def review(self, pick: int) -> None:
        memory_id, memory = self.memory(pick)
        self.bank.review(memory.namespace, memory_id, actor="test", verdict="good", note="fine")

    @precondition(lambda self: self.model.memories)
    @step(pick=picks, until=st.sampled_from((None, PAST, _FUTURE)))
    def set_validity(self, pick: int, until: datetime | None) -> None:
        memory_id, memory = self.memory(pick)
        self.bank.set_validity(memory.namespace, memory_id, until, actor="test")
        memory.valid_until = until

    @precondition(lambda self: self.model.memories)
    @step(some=some, name=names)
    def purge(self, some: list[int], name: str) -> None:
        asked = dict(map(self.memory, some))
        refused = [NotFound for memory in asked.values() if memory.namespace != name]
        refused += [InputError for memory in asked.values() if memory.pinned]
        if refused:
            with pytest.raises(tuple(refused)):
                self.bank.purge(name, list(asked), actor="test", reason=None)
        else:
            assert set(self.bank.purge(name, list(asked), actor="test", reason="enough").memory_ids) == set(asked)
            self.model.purge(asked)

    @step(subject=st.sampled_from(("ada", "bob", "eve")), name=st.sampled_from((None, *NAMES)))
    def forget(self, subject: str, name: str | None) -> None:
        within = NAMES if name is None else (name,)
        theirs = [one for one, memory in self.model.memories.items() if memory.subject == subject]
        theirs = [one for one in theirs if self.model.memories[one].namespace in within]
        done = self.bank.forget_subject(subject, namespace=name, actor="test")
        assert sorted(one for entry in done for one in entry.memory_ids) == sorted(theirs)
        self.model.forget(subject, within)
        self.touched.update(theirs)

    # --- uses ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.memories)
    @step(pick=picks, name=names, subject=people)
    def note_use(self, pick: int, name: str, subject: str | None) -> None:
        memory_id, memory = self.memory(pick)
        use = Use(name, memory.namespace, memory_id, subject)
        record = _use_record(use)
        if use.home not in (name, *SHARED):
            with pytest.raises(InputError):
                self.bank.record_use(record)
            return
        self.bank.record_use(record)
        self.bank.record_use(record)  # twice is once
        self.model.uses[record.id] = use

    @precondition(lambda self: self.model.uses)
    @step(pick=picks, outcome=st.sampled_from(UseOutcome))
    def settle_use(self, pick: int, outcome: UseOutcome) -> None:
        use_id, use = self.use(pick)
        self.bank.settle_use(use.namespace, use_id, outcome)
        use.outcome = outcome

    # --- finding ------------------------------------------------------------------------------------------

    @step(
        name=names,
        question=questions,
        k=st.integers(1, 6),
        kind=st.sampled_from(KeyKind),
        others=st.sets(st.sampled_from(NAMES)),
        floor=st.sampled_from((-1.0, 0.3)),
    )
    def nearest(self, name: str, question: str, k: int, kind: KeyKind, others: set[str], floor: float) -> None:
        if others <= {name, *SHARED}:
            self.compare_nearest(self.bank, name, question, k, kind, others, floor)
            return
        query = key(question, kind)
        with pytest.raises(InputError):
            self.bank.nearest(name, kind, query, k, exclude_question=question, shared=sorted(others))


def _adopted(question: str, seed: int, state: MemoryState) -> Adopted:
    made = trained(question, seed)
    return Adopted(
        question=question,
        task="math",
        prompt=made.prompt,
        keys=MemoryKeys(input=made.keys.input, kv=made.keys.kv),
        model=MODEL,
        recipe=RECIPE,
        origin="pack:test",
        state=state,
        curve=made.curve,
        rollouts=made.rollouts,
    )


def _use_record(use: Use) -> UseRecord:
    return use_of(
        use.namespace,
        use.memory_id,
        memory_namespace="" if use.home == use.namespace else use.home,
        subject=use.subject,
    )
