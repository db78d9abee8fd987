"""Taking in whole memories from elsewhere."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from bank_helpers import MODEL, RECIPE, trained, unit

from elm_agent.errors import InputError, ModelMismatch
from elm_agent.records import EventKind, KeyKind, MemoryState
from elm_agent.storage.bank import Adopted, Bank
from elm_agent.storage.ledger import chain
from elm_agent.storage.sql.database import Database

X = unit(1, 0, 0, 0)


def item(seed: int, state: MemoryState = MemoryState.CANDIDATE) -> Adopted:
    made = trained(unit(1, seed, 0, 0), kv=unit(1, seed, 2), seed=seed)
    return Adopted(
        question=f"question {seed}",
        task="math",
        prompt=made.prompt,
        keys=made.keys,
        model=MODEL,
        recipe=RECIPE,
        origin="pack:sha256:ab unsigned",
        state=state,
        final_vote_share=0.75,
        curve=made.curve,
        rollouts=made.rollouts,
        detail={"source_id": f"mem_{seed}"},
    )


def test_adopted_memories_are_whole(bank: Bank) -> None:
    items = [item(1), item(2, MemoryState.ACTIVE)]
    (first, second) = bank.adopt("default", items, actor="import")
    assert (first[1], second[1]) == (True, True)
    memory = bank.memory("default", first[0])
    assert (memory.state, memory.origin, memory.job_id) == (MemoryState.CANDIDATE, "pack:sha256:ab unsigned", None)
    episode = bank.episode("default", first[0])
    assert (episode.question, episode.curve, episode.rollouts) == ("question 1", items[0].curve, items[0].rollouts)
    assert bank.prompt("default", second[0]).prompt_VE.equal(items[1].prompt.prompt_VE)
    hits = bank.nearest("default", KeyKind.KV, unit(1, 2, 2), 5)
    assert [hit.memory_id for hit in hits] == [second[0]], "a candidate is not found"
    (event,) = bank.events("default", first[0])
    assert (event.kind, event.detail["source_id"]) == (EventKind.IMPORTED, "mem_1")
    bank.transition("default", first[0], MemoryState.ACTIVE, actor="t", reason=None)
    assert len(bank.nearest("default", KeyKind.INPUT, X, 5)) == 2
    assert chain.verify(bank.database, "default").broken is None


def test_the_same_prompt_is_taken_in_once(bank: Bank, database_url: str) -> None:
    items = [item(n) for n in range(6)]
    ((only, _),) = bank.adopt("default", items[:1], actor="import")
    twice = bank.adopt("default", [items[0], items[1], items[1]], actor="import")
    assert twice[0] == (only, False)
    assert (twice[1][0], twice[1][1], twice[2][1]) == (twice[2][0], True, False)
    other = Bank(Database.open(database_url), bank.tensors, index="exact")
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda one: one.adopt("default", items, actor="import"), (bank, other)))
    assert sum(new for result in done for _, new in result) == 4
    assert len(bank.memories("default")) == 6
    other.close()


def test_one_bad_item_stops_all(bank: Bank) -> None:
    foreign = dataclasses.replace(item(2), model=dataclasses.replace(MODEL, weights="sha256:other"))
    with pytest.raises(ModelMismatch):
        bank.adopt("default", [item(1), foreign], actor="import")
    with pytest.raises(InputError, match="candidate or active"):
        bank.adopt("default", [item(1, MemoryState.RETIRED)], actor="import")
    wide = dataclasses.replace(item(3), keys=dataclasses.replace(item(3).keys, input=unit(1, 2, 3, 4, 5)))
    bank.adopt("default", [item(1)], actor="import")
    with pytest.raises(InputError, match="have width"):
        bank.adopt("default", [item(2), wide], actor="import")
    assert len(bank.memories("default")) == 1
