"""Pages, flows and samples of many rows: held against a slow reading of the same bank, on both databases."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bank_helpers import MODEL
from vault_helpers import encrypted_bank, plain_bank

from elm_agent.bench.filling import made_up, use_of
from elm_agent.errors import InputError, NotFound
from elm_agent.records import MemoryRecord, MemoryState, Route, UseOutcome, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.storage.browsing.flow import flow
from elm_agent.storage.browsing.memories import MemoryPage, Order, Wanted, browse, state_counts
from elm_agent.storage.browsing.sample import sample
from elm_agent.storage.sql.database import Database

COUNT = 23
SLOW: dict[Order, tuple[Callable[[MemoryRecord], Any], bool]] = {
    Order.NEWEST: (lambda memory: memory.created_at, True),
    Order.OLDEST: (lambda memory: memory.created_at, False),
    Order.CHANGED: (lambda memory: memory.revision, True),
    Order.BEST_VOTES: (lambda memory: memory.final_vote_share, True),
    Order.WORST_VOTES: (lambda memory: memory.final_vote_share, False),
    Order.USED: (lambda memory: memory.uses, True),
    Order.FIXED: (lambda memory: memory.fixed, True),
    Order.BROKEN: (lambda memory: memory.broken, True),
}


def fill(bank: Bank) -> list[str]:
    """Memories of which some share their time, their votes, their number of uses and half of their words."""
    dice = random.Random(0)
    items = [
        replace(item, model=MODEL, question=f"Häuser {n % 4}% of_{n}", final_vote_share=n % 5 / 4, task="ab"[n % 2])
        for n, item in enumerate(made_up(np.random.default_rng(0), COUNT, MODEL.width))
    ]
    ids = [
        made for start in range(0, COUNT, 6) for made, _ in bank.adopt("default", items[start : start + 6], actor="t")
    ]
    for memory_id in dice.choices(ids, k=40):
        outcome = dice.choice([UseOutcome.FIXED, UseOutcome.BROKEN, UseOutcome.BOTH_RIGHT])
        bank.record_use(use_of("default", memory_id, outcome=outcome))
    for memory_id in ids[3:12:3]:
        bank.transition("default", memory_id, MemoryState.RETIRED, actor="t", reason=None)
    bank.pin("default", ids[5], True, actor="t")
    return ids


def pages(bank: Bank, size: int = 4, **wanted: Any) -> list[MemoryPage]:
    """Forwards to the end."""
    found = [browse(bank.database, bank.vault, "default", size=size, **wanted)]
    while found[-1].after is not None:
        found.append(browse(bank.database, bank.vault, "default", size=size, after=found[-1].after, **wanted))
        assert len(found) < 50
    return found


def ids_of(pages: list[MemoryPage]) -> list[str]:
    return [line.id for page in pages for line in page.lines]


def test_every_order_is_that_of_a_slow_sort(bank: Bank) -> None:
    fill(bank)
    memories = bank.memories("default")
    for order, (value, down) in SLOW.items():
        counted = order in (Order.USED, Order.FIXED, Order.BROKEN)
        expected = [memory for memory in memories if not counted or value(memory)]
        expected.sort(key=lambda memory: (value(memory), memory.id), reverse=down)
        assert ids_of(pages(bank, order=order)) == [memory.id for memory in expected], order


def test_the_way_back_shows_the_same_pages(bank: Bank) -> None:
    fill(bank)
    for order in Order:
        there = pages(bank, order=order)
        assert there[0].before is None
        page = there[-1]
        for earlier in reversed(there[:-1]):
            assert page.before is not None
            page = browse(bank.database, bank.vault, "default", size=4, order=order, before=page.before)
            assert [line.id for line in page.lines] == [line.id for line in earlier.lines], order
        assert page.before is None
        assert page.after is not None


def test_a_line_is_what_the_record_says(bank: Bank) -> None:
    fill(bank)
    records = {memory.id: memory for memory in bank.memories("default")}
    for line in pages(bank)[0].lines:
        record = records[line.id]
        for name in line.__slots__:
            assert getattr(line, name) == getattr(record, name), name


def test_filters_narrow_and_go_together(bank: Bank) -> None:
    ids = fill(bank)
    assert sorted(ids_of(pages(bank, wanted=Wanted(state=MemoryState.RETIRED)))) == sorted(ids[3:12:3])
    assert ids_of(pages(bank, wanted=Wanted(pinned=True))) == [ids[5]]
    assert ids_of(pages(bank, wanted=Wanted(pinned=True, task="a"))) == []
    assert ids_of(pages(bank, order=Order.USED, wanted=Wanted(pinned=True, state=MemoryState.RETIRED))) == []
    assert len(ids_of(pages(bank, wanted=Wanted(task="a", pinned=False)))) == 12


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_search_takes_words_as_they_are(database: Database, tmp_path: Path, encrypted: bool) -> None:
    """Upper and lower case are alike; what a pattern language would make something of is plain text."""
    made = (encrypted_bank if encrypted else plain_bank)(database, tmp_path)
    fill(made)
    for text, expected in {"USER 1% OF": 6, "_1": 11, "%": 23, "f_22": 1, "f%2": 0, "\\": 0, "'; --": 0}.items():
        assert len(ids_of(pages(made, wanted=Wanted(text=text)))) == expected, text
    both = ids_of(pages(made, order=Order.BROKEN, wanted=Wanted(text="of_1")))
    records = {memory.id: memory for memory in made.memories("default")}
    assert sorted(both) == sorted(m.id for m in records.values() if "of_1" in m.question and m.broken)


def test_a_search_of_sealed_questions_says_how_far_it_came(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = encrypted_bank(database, tmp_path)
    ids = fill(bank)
    monkeypatch.setattr("elm_agent.storage.browsing.memories._PIECE", 5)
    wanted = Wanted(text="of_0")  # the very last one
    first = browse(bank.database, bank.vault, "default", wanted=wanted, seconds=0)
    assert (first.lines, first.looked, first.before) == ((), 5, None)
    pages = [first]
    while pages[-1].looked is not None:
        place = pages[-1].after
        pages.append(browse(bank.database, bank.vault, "default", wanted=wanted, after=place, seconds=0))
    assert len(pages) == 5  # of 23 questions, five at a time
    assert ids_of(pages) == [ids[0]]
    whole = browse(bank.database, bank.vault, "default", wanted=wanted)
    assert [line.id for line in whole.lines] == [ids[0]]
    assert (whole.looked, whole.after) == (None, None)


def test_places_that_are_none_are_refused(bank: Bank) -> None:
    for place in ("", "~", "x~mem_1", "1e400~mem_1", "99999999999999999999999~mem_1", "1~ä", "nan"):
        with pytest.raises(InputError, match="is no place"):
            browse(bank.database, bank.vault, "default", after=place)
    with pytest.raises(NotFound, match="'elsewhere'"):
        browse(bank.database, bank.vault, "elsewhere")
    assert browse(bank.database, bank.vault, "default").lines == ()


def test_states_are_counted(bank: Bank) -> None:
    fill(bank)
    counts = state_counts(bank.database, "default")
    assert counts == {
        MemoryState.CANDIDATE: 0,
        MemoryState.ACTIVE: 20,
        MemoryState.QUARANTINED: 0,
        MemoryState.RETIRED: 3,
    }


def test_the_flow_counts_what_a_slow_loop_counts(bank: Bank) -> None:
    ids = fill(bank)
    begin = utcnow() - timedelta(days=1)
    dice = random.Random(1)
    for n in range(30):
        outcome, route = dice.choice([*UseOutcome]), dice.choice([Route.MEMORY, Route.AGREED, Route.ZERO_SHOT])
        when = begin + timedelta(minutes=n // 2)  # some at the same time
        bank.record_use(use_of("default", ids[0], outcome=outcome, route=route, created_at=when))
    uses = bank.uses("default")
    found = flow(bank.database, "default", pieces=7)
    assert (found.uses, found.complete) == (len(uses), True)
    assert found.counts == dict(Counter((use.route, use.outcome) for use in uses))
    assert len(found.stretches) == 7
    assert sum(stretch.uses for stretch in found.stretches) == len(uses)
    newest = uses[: found.stretches[-1].uses]
    settled = [use.outcome for use in newest if use.outcome is not UseOutcome.UNKNOWN]
    right = sum(outcome in (UseOutcome.FIXED, UseOutcome.BOTH_RIGHT) for outcome in settled)
    plain = sum(outcome in (UseOutcome.BROKEN, UseOutcome.BOTH_RIGHT) for outcome in settled)
    assert found.stretches[-1].settled == len(settled)
    assert found.stretches[-1].with_memory == pytest.approx(right / len(settled))
    assert found.stretches[-1].without == pytest.approx(plain / len(settled))
    assert [stretch.begins for stretch in found.stretches] == sorted(stretch.begins for stretch in found.stretches)
    part = flow(bank.database, "default", most=10, pieces=3)
    assert (part.uses, part.complete) == (10, False)
    assert part.counts == dict(Counter((use.route, use.outcome) for use in uses[:10]))


def test_a_bank_without_uses_has_an_empty_flow(bank: Bank) -> None:
    found = flow(bank.database, "default")
    assert (found.uses, found.complete, found.counts, found.stretches) == (0, True, {}, ())
    with pytest.raises(NotFound):
        flow(bank.database, "elsewhere")


def test_a_sample_is_of_active_memories_with_their_keys(bank: Bank) -> None:
    ids = fill(bank)
    everything = sample(bank.database, bank.vault, "default", most=100)
    assert everything.active == 20
    assert sorted(everything.ids) == sorted(set(ids) - set(ids[3:12:3]))
    for memory_id, question, key in zip(everything.ids, everything.questions, everything.keys_NE, strict=True):
        assert np.array_equal(key, bank.keys("default", memory_id).input)
        assert question == bank.memory("default", memory_id).question
    some = sample(bank.database, bank.vault, "default", most=8)
    assert len(some.ids) <= 8
    assert set(some.ids) <= set(everything.ids)
    assert some.active == 20


def test_uses_of_a_memory_are_the_same_however_they_are_asked_for(bank: Bank) -> None:
    for memory_id in fill(bank)[:6]:
        assert bank.uses("default", memory_id, home="default") == bank.uses("default", memory_id)
        assert bank.uses("default", memory_id, home="elsewhere") == []
