"""Rows as the first version of the library wrote them, in plain SQL, and processes that open such a bank."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import numpy as np
from sqlalchemy import Engine, event, text

from elm_agent.storage.ledger import chain
from elm_agent.storage.sql.database import Database

KEY = np.asarray([1, 0, 0, 0], dtype=np.float32)
REASON = "nicht mehr nötig \U0001f642"
STATES = ("candidate", "active", "quarantined", "retired")
TABLES = ("namespaces", "episodes", "memories", "memory_keys", "jobs", "uses", "events", "outbox", "index_watermarks")
_AT = "2026-01-02 03:04:05.678901"
_MODEL = {"name": "tiny", "weights": "sha256:w", "tokenizer": "sha256:t", "template": "sha256:c", "width": 4}
_RECIPE = {"virtual_tokens": 2, "rollouts": 8, "steps": 10}


def fill(engine: Engine) -> None:
    """Two namespaces; in each a memory in every state with its episode, keys, events, jobs and uses."""
    for namespace in ("default", "other"):
        _namespace(engine, namespace)


def rows(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Everything in the tables of the first schema, in a fixed order; JSON as text, keys sorted, without nulls."""
    with engine.connect() as connection:
        found = {
            name: [dict(row) for row in connection.execute(text(f"SELECT * FROM {name}")).mappings()]
            for name in TABLES
        }
    return {name: sorted(map(_plain, content), key=str) for name, content in found.items()}


def open_and_verify(url: str) -> str:
    """What a process does that opens the bank: the head of the chain that it finds."""
    database = Database.open(url)
    report = chain.verify(database, "default")
    assert report.broken is None
    database.close()
    return report.head


def die_inside(url: str, table: str) -> None:
    """Open the bank and be killed in the middle of its migration, when ``table`` is made."""

    def kill(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if f"CREATE TABLE {table}" in statement:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "after_cursor_execute", kill)
    Database.open(url)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in row.items()}


def _value(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("{", "["):
        value = json.loads(value)
    if isinstance(value, dict):
        value = {name: item for name, item in value.items() if item is not None}  # no reason is no reason
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True)
    return bytes(value) if isinstance(value, memoryview) else value


def _namespace(engine: Engine, namespace: str) -> None:
    def add(table: str, **values: Any) -> None:
        values |= {} if table == "namespaces" else {"namespace": namespace}
        names = ", ".join(values)
        holders = ", ".join(f":{name}" for name in values)
        connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({holders})"), values)

    def note(revision: int, kind: str, memory: str, detail: dict[str, Any]) -> None:
        whole = json.dumps(detail)
        add("events", revision=revision, kind=kind, memory_id=memory, actor="w1", detail=whole, created_at=_AT)

    with engine.begin() as connection:
        add(
            "namespaces", name=namespace, model_name="tiny", model_weights="sha256:w", model_tokenizer="sha256:t",
            model_template="sha256:c", model_width=4, model_id="sha256:m", revision=6, created_by="agent",
            created_at=_AT,
        )  # fmt: skip
        for number, state in enumerate(STATES):
            memory, episode = f"mem_{number}", f"ep_{number}"
            question = f"What is {number} times 7? \U0001f642"
            add(
                "episodes", id=episode, question=question, task="math", majority_answer="42", curve="[]",
                rollouts=json.dumps([]), seed=2**62, seconds=0.25, created_at=_AT,
            )  # fmt: skip
            add(
                "memories", id=memory, state=state, pinned=False, reason=None, question=question,
                question_digest=f"sha256:q{number}", task="math", episode_id=episode, job_id=None,
                tensor_digest=f"sha256:{number:064x}", virtual_tokens=2, width=4, model=json.dumps(_MODEL),
                recipe=json.dumps(_RECIPE), library_version="0.1.0", format_version=1, final_vote_share=0.1 + 0.2,
                revision=number + 1, created_at=_AT, updated_at=_AT,
            )  # fmt: skip
            add("memory_keys", kind="input", memory_id=memory, width=4, vector=KEY.tobytes())
            revision = number + 1
            note(revision, "created", memory, {"job_id": None, "tensor_digest": f"sha256:{number:064x}"})
            add("outbox", revision=revision, n=0, kind="input", memory_id=memory, present=state == "active")
        note(5, "evicted", "mem_3", {"from": "active", "reason": REASON})
        note(6, "quarantined", "mem_2", {"from": "active", "reason": None})
        for number, outcome in enumerate(("fixed", "unknown")):
            add(
                "uses", id=f"use_{number}", memory_id="mem_1", question="again?", similarity=0.9, key_kind="input",
                route="memory", reason=None, answer="42", memory_answer="42", zero_shot_answer=None, outcome=outcome,
                created_at=_AT,
            )  # fmt: skip
        for number, state in enumerate(("done", "queued")):
            add(
                "jobs", id=f"job_{namespace}_{number}", state=state, question="why?", task="math", priority=0,
                attempts=number, max_attempts=3, idempotency_key=f"sha256:k{number}", model_id="sha256:m",
                recipe=json.dumps(_RECIPE), progress="{}", cancel_requested=False, reason=None,
                memory_id="mem_1" if state == "done" else None, owner=None, fence=number, lease_until=None,
                run_after=_AT, created_at=_AT, updated_at=_AT,
            )  # fmt: skip
        add("index_watermarks", index_name="chroma", revision=3)
