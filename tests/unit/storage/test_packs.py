"""Memories leave a bank and come into another: whole, once, as candidates, from a file that is what it says."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import importing
import pytest
import torch
from bank_helpers import MODEL, Learn, trained, unit
from pack_helpers import altered_line, parts_of, put_together
from sqlalchemy import select

from elm_agent.errors import InputError, ModelMismatch, NotFound
from elm_agent.records import EventKind, KeyKind, MemoryRecord, MemoryState
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger.chain import verify
from elm_agent.storage.ledger.signing import SigningKey
from elm_agent.storage.packs.transfer import NO_QUESTION, export_pack, import_pack
from elm_agent.storage.sql.schema import ExportRow

QUESTIONS = [f"What is {place} times 8?" for place in range(5)]


@pytest.fixture
def memories(bank: Bank, learn: Learn) -> list[MemoryRecord]:
    """Five active memories in ``default``, and an empty namespace ``target`` of the same model."""
    bank.bind("target", MODEL)
    keys = [unit(1, place, 0, 1) for place in range(len(QUESTIONS))]
    seeds = [q.replace("What", f"{n}hat") for n, q in enumerate(QUESTIONS)]  # the helper's prompt follows the start
    return [learn(question, key, kv=unit(*range(1, 9))) for question, key in zip(seeds, keys, strict=True)]


@pytest.fixture
def pack(bank: Bank, memories: list[MemoryRecord], tmp_path: Path) -> Path:  # noqa: ARG001
    path = tmp_path / "a.elmpack"
    export_pack(bank, "default", path, actor="tester")
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    SigningKey.generate().write(path)
    return path


def test_a_memory_arrives_whole_and_as_a_candidate(bank: Bank, memories: list[MemoryRecord], pack: Path) -> None:
    bank.pin("default", memories[0].id, True, actor="tester")
    report = import_pack(bank, "target", pack, actor="importer")
    assert (report.memories, report.new, report.known, report.exported_from) == (5, 5, 0, "default")
    here = dict(report.ids)
    for memory in memories:
        found = bank.memory("target", here[memory.id])
        assert (found.state, found.pinned, found.job_id) == (MemoryState.CANDIDATE, False, None)
        assert found.origin == report.origin == f"pack:{report.pack_id} unsigned"
        same = ("question", "question_digest", "task", "recipe", "model", "final_vote_share", "virtual_tokens")
        assert [getattr(found, name) for name in same] == [getattr(memory, name) for name in same]
        assert torch.equal(bank.prompt("target", found.id).prompt_VE, bank.prompt("default", memory.id).prompt_VE)
        for kind in ("input", "kv"):
            ours, theirs = (getattr(bank.keys(*at), kind) for at in (("target", found.id), ("default", memory.id)))
            assert ours.tobytes() == theirs.tobytes()
        ours, theirs = bank.episode("target", found.id), bank.episode("default", memory.id)
        assert replace(ours, id="", namespace="", created_at=theirs.created_at) == replace(
            theirs, id="", namespace=""
        )
        (event,) = bank.events("target", found.id)
        assert (event.kind, event.actor) == (EventKind.IMPORTED, "importer")
        assert (event.detail["pack_id"], event.detail["id_in_pack"]) == (report.pack_id, memory.id)
    assert bank.nearest("target", KeyKind.INPUT, unit(1, 0, 0, 1), 5) == [], "no candidate is retrieved"
    assert verify(bank.database, "target").broken is None


def test_what_is_there_is_known(bank: Bank, memories: list[MemoryRecord], pack: Path) -> None:
    again = import_pack(bank, "default", pack, actor="importer")
    assert (again.new, again.known) == (0, 5), "a bank knows its own memories"
    import_pack(bank, "target", pack, actor="importer")
    again = import_pack(bank, "target", pack, actor="importer")
    assert (again.new, again.known, again.ids) == (0, 5, ())
    assert len(bank.memories("target")) == len(memories)


def test_a_dry_run_counts_and_writes_nothing(bank: Bank, memories: list[MemoryRecord], pack: Path) -> None:
    told: list[tuple[int, int]] = []
    report = import_pack(bank, "target", pack, dry_run=True, actor="x", progress=lambda *at: told.append(at))
    assert (report.new, report.known, report.dry_run, report.ids) == (5, 0, True, ())
    assert told[-1] == (5, 5)
    assert bank.memories("target") == []
    assert import_pack(bank, "default", pack, dry_run=True, actor="x").known == len(memories)
    fresh = import_pack(bank, "fresh", pack, dry_run=True, new_namespace=True, actor="x")
    assert fresh.new == len(memories)
    assert [info.name for info in bank.namespaces()] == ["default", "target"]


def test_an_export_is_noted_and_a_second_place_too(bank: Bank, memories: list[MemoryRecord], tmp_path: Path) -> None:
    chosen = [memories[1].id, memories[1].id, memories[3].id]
    first, second = (
        export_pack(bank, "default", tmp_path / name, memory_ids=chosen, actor="tester") for name in ("a", "b")
    )
    assert first.pack_id == second.pack_id
    assert first.memories == 2
    with bank.database.read() as session:
        rows = {row.memory_id: row for row in session.scalars(select(ExportRow))}
    assert set(rows) == set(chosen)
    assert rows[chosen[0]].path.split("\n") == [str(tmp_path / "a"), str(tmp_path / "b")]
    kinds = [event.kind for event in bank.events("default", memories[1].id)]
    assert kinds[-2:] == [EventKind.EXPORTED, EventKind.EXPORTED]
    assert verify(bank.database, "default").broken is None


def test_what_is_exported(bank: Bank, memories: list[MemoryRecord], tmp_path: Path) -> None:
    bank.transition("default", memories[0].id, MemoryState.RETIRED, actor="x", reason=None)
    export_pack(bank, "default", tmp_path / "active", actor="x")
    export_pack(bank, "default", tmp_path / "all", state=None, actor="x")
    export_pack(bank, "default", tmp_path / "retired", state=MemoryState.RETIRED, actor="x")
    counts = [
        import_pack(bank, "target", tmp_path / name, dry_run=True, actor="x").memories
        for name in ("active", "all", "retired")
    ]
    assert counts == [4, 5, 1]
    with pytest.raises(InputError, match="no candidate memories"):
        export_pack(bank, "default", tmp_path / "none", state=MemoryState.CANDIDATE, actor="x")
    with pytest.raises(NotFound):
        export_pack(bank, "default", tmp_path / "none", memory_ids=["mem_other"], actor="x")
    with pytest.raises(NotFound):
        export_pack(bank, "nowhere", tmp_path / "none", actor="x")
    assert not (tmp_path / "none").exists()


def test_without_episodes_no_word_of_them_leaves(bank: Bank, memories: list[MemoryRecord], tmp_path: Path) -> None:
    path = tmp_path / "a"
    export_pack(bank, "default", path, episodes=False, actor="x")
    text = b"".join(parts_of(path).values())
    assert b"times 8" not in text
    assert b"It is 56" not in text
    report = import_pack(bank, "target", path, actor="x")
    found = bank.memory("target", dict(report.ids)[memories[0].id])
    assert (found.question, found.question_digest) == (NO_QUESTION, memories[0].question_digest)
    assert bank.episode("target", found.id).rollouts == ()


def test_a_signature_is_checked(bank: Bank, memories: list[MemoryRecord], key: Path, tmp_path: Path) -> None:
    path, public = tmp_path / "a", str(SigningKey.read(key).public)
    exported = export_pack(bank, "default", path, key=key, actor="x")
    report = import_pack(bank, "target", path, public_key=public, actor="x")
    assert exported.memories == report.new == len(memories)
    assert exported.signed_by == report.signed_by == SigningKey.read(key).public.fingerprint
    assert report.origin == f"pack:{report.pack_id} signed by {report.signed_by}"
    assert bank.memory("target", report.ids[0][1]).origin == report.origin
    with pytest.raises(InputError, match="do not trust it"):
        import_pack(bank, "target", path, public_key=str(SigningKey.generate().public), actor="x")
    parts = parts_of(path)
    forged = put_together(tmp_path / "forged", altered_line(parts, lambda line: line.update(task="text")))
    with pytest.raises(InputError, match="does not fit"):
        import_pack(bank, "target", forged, actor="x")
    del parts["signature.json"]
    with pytest.raises(InputError, match="not signed"):
        import_pack(bank, "target", put_together(tmp_path / "bare", parts), public_key=public, actor="x")


def test_another_model_is_refused_before_anything_is_written(bank: Bank, pack: Path) -> None:
    bank.bind("other", replace(MODEL, weights="sha256:x"))
    before = sorted(os.walk(pack.parent / "tensors"))
    with pytest.raises(ModelMismatch, match="weights"):
        import_pack(bank, "other", pack, actor="x")
    with pytest.raises(NotFound, match="--new"):
        import_pack(bank, "nowhere", pack, actor="x")
    assert sorted(os.walk(pack.parent / "tensors")) == before


def test_a_namespace_can_be_made_for_a_pack(bank: Bank, pack: Path) -> None:
    assert import_pack(bank, "fresh", pack, new_namespace=True, actor="x").new == 5
    assert len(bank.memories("fresh")) == 5


def test_a_bad_last_memory_keeps_all_others_out(bank: Bank, pack: Path, tmp_path: Path) -> None:
    forged = altered_line(parts_of(pack), lambda line: line.update(final_vote_share=2.0), place=4)
    with pytest.raises(InputError, match="line 5"):
        import_pack(bank, "target", put_together(tmp_path / "forged", forged), actor="x")
    assert bank.memories("target") == []


def test_what_is_purged_while_it_is_exported_is_in_no_pack(
    bank: Bank, memories: list[MemoryRecord], tmp_path: Path
) -> None:
    def purge(done: int, total: int) -> None:
        if done == total:
            bank.purge("default", [memories[0].id], actor="x", reason=None)

    with pytest.raises(NotFound, match="purged"):
        export_pack(bank, "default", tmp_path / "a", actor="x", progress=purge)
    assert not list(tmp_path.glob("*a"))
    assert not list(tmp_path.glob(".elmpack*"))


def test_two_imports_at_once_store_each_memory_once(database_url: str, bank: Bank, pack: Path) -> None:
    both = [importing.start(database_url, pack.parent / "tensors", pack, batch=1) for _ in range(2)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    found = bank.memories("target")
    assert len(found) == len({memory.question for memory in found}) == 5
    assert len(bank.events("target")) == 5
    assert verify(bank.database, "target").broken is None


@pytest.mark.parametrize("step", ["adopt.tensors", "adopt.before_commit", "adopt.committed"])
def test_a_killed_import_is_completed_by_the_next(database_url: str, bank: Bank, pack: Path, step: str) -> None:
    killed = importing.start(database_url, pack.parent / "tensors", pack, batch=2, kill=(step, 2))
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert len(bank.memories("target")) == (4 if step == "adopt.committed" else 2)
    report = import_pack(bank, "target", pack, actor="x")
    assert report.known == (4 if step == "adopt.committed" else 2)
    found = bank.memories("target")
    assert len(found) == len({memory.question for memory in found}) == 5
    assert trained(unit(1, 0, 0, 1)).prompt.width == bank.prompt("target", found[0].id).width
