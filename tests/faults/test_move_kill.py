"""Whoever moves a bank is killed at every named step: never do both banks take changes, and the next run finishes."""

from __future__ import annotations

import signal
from pathlib import Path

import dying_mover
import numpy as np
import pytest

from elm_agent.bench import filling
from elm_agent.errors import BankMoved, NotFound
from elm_agent.records import EventKind, KeyKind
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.ledger import chain
from elm_agent.storage.moving.move import MOVE_STEPS, move

POINTS = [(step, 1, False) for step in MOVE_STEPS] + [("move.batch", 5, False), ("move.batch", 12, False)]
POINTS += [(step, 1, True) for step in ("move.locked", "move.before_commit", "move.committed")]


@pytest.mark.parametrize(("step", "nth", "back"), POINTS, ids=str)
def test_killed_while_moving(database_url: str, tmp_path: Path, step: str, nth: int, back: bool) -> None:
    """``there``: from SQLite to the database of the test; ``back``: from it to SQLite."""
    local, other = (f"sqlite:///{tmp_path / 'local.sqlite'}", tmp_path / "a"), (database_url, tmp_path / "b")
    source_at, target_at = (other, local) if back else (local, other)
    source = dying_mover.open_bank(*source_at)
    ids = _fill(source)
    process = dying_mover.start(source_at, target_at, step=step, nth=nth)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, "the move never came to this step"
    target = dying_mover.open_bank(*target_at)
    assert [_takes_changes(bank) for bank in (source, target)].count(True) <= 1
    move(source, target, actor="mover")
    assert not _takes_changes(source)
    assert _takes_changes(target)
    for name in ("first", "second"):
        assert {memory.id for memory in target.memories(name)} == ids[name]
        assert chain.verify(target.database, name).broken is None
        assert [event.kind for event in target.events(name)].count(EventKind.MOVED) == 1
    assert examine(target).clean
    source.close()
    target.close()


@pytest.mark.parametrize("step", ["move.before_commit", "move.committed", "move.activated"])
def test_what_was_purged_elsewhere_is_gone_however_the_way_back_ends(
    database_url: str, tmp_path: Path, step: str
) -> None:
    """The bank goes away, loses a memory there, comes back; the old place still had its tensor, and its snapshots."""
    home_at, away_at = (f"sqlite:///{tmp_path / 'local.sqlite'}", tmp_path / "a"), (database_url, tmp_path / "b")
    home, away = dying_mover.open_bank(*home_at), dying_mover.open_bank(*away_at)
    victim = home.memory("first", sorted(_fill(home)["first"])[0])
    key = home.keys("first", victim.id).input
    assert home.nearest("first", KeyKind.INPUT, key, 1)[0].memory_id == victim.id, "it is in the files of the index"
    move(home, away, actor="mover")
    away.purge("first", [victim.id], actor="test", reason="private")
    home.close()
    process = dying_mover.start(away_at, home_at, step=step, nth=1)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    home = dying_mover.open_bank(*home_at)
    move(away, home, actor="mover")
    assert victim.tensor_digest not in set(home.tensors.digests("first"))
    texts = [victim.question.encode(), key.tobytes()]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != tmp_path / "b"]
    assert not [path for path in files for text in texts if text in path.read_bytes()]
    assert examine(home).clean
    away.close()
    home.close()


def _fill(bank: Bank) -> dict[str, set[str]]:
    rng, ids = np.random.default_rng(0), {}
    for name in ("first", "second"):
        bank.bind(name, filling.model_of(8))
        adopted = bank.adopt(name, filling.made_up(rng, 6, 8), actor="test")
        ids[name] = {memory_id for memory_id, _ in adopted}
        bank.record_use(filling.use_of(name, adopted[0][0]))
        bank.purge(name, [adopted[-1][0]], actor="test", reason="private")
        ids[name].discard(adopted[-1][0])
    return ids


def _takes_changes(bank: Bank) -> bool:
    try:
        bank.note_event("first", EventKind.REVIEWED, actor="test", detail={})
    except (BankMoved, NotFound):
        return False
    return True
