"""Names that are none, through every call of a bank that takes one: the library's own error, short, or no harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bank_helpers import MODEL, RECIPE, Learn, unit

from elm_agent.bench.filling import use_of
from elm_agent.errors import ElmError
from elm_agent.records import EventKind, Feedback, KeyKind, MemoryState, UseOutcome, UseRecord
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger import chain
from elm_agent.storage.packs.transfer import export_pack, import_pack

NAMES = (
    *("", "a/b", "../x", "/etc", ".", "..", "a\0b", "x" * 10_000, "\u202eabc", "\ud800", "a b", "é", "\n", "😀"),
    *("'; drop table memories;--", "%", "_", "sha256:", "-x", "C:\\x", "{namespace!r}"),
)
Call = Callable[[str], object]


def use(memory_id: str, **other: str) -> UseRecord:
    nothing = dict.fromkeys(("answer", "memory_answer", "zero_shot_answer"))
    return replace(use_of("default", memory_id), **nothing, **other)


def calls_of(bank: Bank, known: str, folder: Path) -> dict[str, Call]:
    """Every call, by the name of what the nasty name stands for."""
    query, active, jobs, pack = unit(1, 0, 0, 0), MemoryState.ACTIVE, bank.jobs, folder / "p"
    by_namespace = {
        "bind": lambda n: bank.bind(n, MODEL),
        "memory": lambda n: bank.memory(n, known),
        "prompt": lambda n: bank.prompt(n, known),
        "memories": lambda n: bank.memories(n),
        "episode": lambda n: bank.episode(n, known),
        "keys": lambda n: bank.keys(n, known),
        "events": lambda n: bank.events(n),
        "transition": lambda n: bank.transition(n, known, active, actor="x", reason=None),
        "pin": lambda n: bank.pin(n, known, True, actor="x"),
        "repaired": lambda n: bank.repaired(n, known, actor="x", detail={}),
        "note_event": lambda n: bank.note_event(n, EventKind.REPAIRED, actor="x", detail={}),
        "nearest": lambda n: bank.nearest(n, KeyKind.INPUT, query, 1),
        "shared": lambda n: bank.nearest("default", KeyKind.INPUT, query, 1, shared=(n,)),
        "uses": lambda n: bank.uses(n),
        "record": lambda n: bank.record_use(use(known, namespace=n)),
        "record shared": lambda n: bank.record_use(use(known, memory_namespace=n)),
        "settle": lambda n: bank.settle_use(n, "u", UseOutcome.FIXED),
        "feedback": lambda n: bank.note_feedback(n, "u", Feedback.RIGHT),
        "worth": lambda n: bank.posteriors(n, [(n, known)]),
        "purge": lambda n: bank.purge(n, [known], actor="x", reason=None),
        "forget": lambda n: bank.forget_subject("s", namespace=n, actor="x"),
        "verify": lambda n: chain.verify(bank.database, n),
        "enqueue": lambda n: jobs.enqueue(n, "q", task="math", model_id=MODEL.id, recipe=RECIPE),
        "jobs": lambda n: jobs.list(n),
        "job": lambda n: jobs.get(n, "job_x"),
        "tensor put": lambda n: bank.tensors.put(n, b"x"),
        "tensor get": lambda n: bank.tensors.get(n, "sha256:" + "0" * 64),
        "tensor digests": lambda n: list(bank.tensors.digests(n)),
        "export": lambda n: export_pack(bank, n, folder / "q", actor="x"),
        "import": lambda n: import_pack(bank, n, pack, actor="x"),
        "import new": lambda n: import_pack(bank, n, pack, actor="x", new_namespace=True) if n != "_" else None,
    }
    by_id = {
        "memory id": lambda n: bank.memory("default", n),
        "order": lambda n: bank.memories("default", order=n),
        "events id": lambda n: bank.events("default", n),
        "pin id": lambda n: bank.pin("default", n, True, actor="x"),
        "transition id": lambda n: bank.transition("default", n, active, actor="x", reason=None),
        "use id": lambda n: bank.settle_use("default", n, UseOutcome.FIXED),
        "feedback id": lambda n: bank.note_feedback("default", n, Feedback.WRONG, answer=n),
        "worth of": lambda n: bank.posteriors("default", [("default", n)]),
        "use of": lambda n: bank.record_use(use(n)),
        "purge id": lambda n: bank.purge("default", [n], actor="x", reason=n),
        "job id": lambda n: jobs.cancel("default", n),
        "digest": lambda n: bank.tensors.get("default", n),
        "export id": lambda n: export_pack(bank, "default", folder / "q", memory_ids=[n], actor="x"),
    }
    words = {
        "actor and note": lambda n: bank.review("default", known, actor=n or "x", verdict="good", note=n),
        "question": lambda n: bank.record_use(use(known, question=n, subject=n)),
        "subject": lambda n: bank.forget_subject(n, actor=n or "x"),
        "owner": lambda n: jobs.claim(n, lease_seconds=1),
        "export path": lambda n: export_pack(bank, "default", folder / "no" / "no" / n, actor="x"),
        "export key": lambda n: export_pack(bank, "default", folder / "q", key=Path(n), actor="x"),
        "import path": lambda n: import_pack(bank, "default", folder / "no" / "no" / n, actor="x"),
        "import key": lambda n: import_pack(bank, "default", pack, public_key=n, actor="x"),
        "import actor": lambda n: import_pack(bank, "default", pack, actor=n or "x"),
    }
    return by_namespace | by_id | words


def test_nasty_names_end_in_an_error_of_ours_or_do_no_harm(bank: Bank, learn: Learn, tmp_path: Path) -> None:
    known = learn("What?", unit(1, 0, 0, 0)).id
    folder = tmp_path / "here"
    folder.mkdir()
    export_pack(bank, "default", folder / "p", actor="x")
    wrong = []
    for what, call in calls_of(bank, known, folder).items():
        for name in NAMES:
            try:
                call(name)
            except ElmError as error:
                if len(str(error)) > 2_000:
                    wrong.append(f"{what} {name[:10]!r}: {len(str(error))} characters")
            except Exception as error:  # noqa: BLE001 - what is looked for
                wrong.append(f"{what} {name[:10]!r}: {type(error).__name__}: {str(error)[:80]}")
    assert wrong == []
    assert {info.name for info in bank.namespaces()} <= {"default", "_"}
    assert [memory.id for memory in bank.memories("default")] == [known]
    assert chain.verify(bank.database, "default").broken is None
    outside = {path.name for path in tmp_path.iterdir()} - {"here", "tensors"}
    assert all(name.startswith("bank.sqlite") for name in outside)
    assert [path.name for path in folder.iterdir()] == ["p"]
