"""Rows to records and back. Nothing else: no query, no decision."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import numpy as np

from elm_agent.records import (
    Episode,
    EventKind,
    EventRecord,
    JobRecord,
    JobState,
    KeyKind,
    MemoryRecord,
    MemoryState,
    ModelFingerprint,
    Recipe,
    Rollout,
    Route,
    StepRecord,
    UseOutcome,
    UseRecord,
    Vector,
)
from elm_agent.storage.schema import EpisodeRow, EventRow, JobRow, MemoryRow, NamespaceRow, UseRow


def fingerprint_of(row: NamespaceRow) -> ModelFingerprint:
    return ModelFingerprint(
        row.model_name, row.model_weights, row.model_tokenizer, row.model_template, row.model_width
    )


def memory_record(row: MemoryRow, uses: int, fixed: int, broken: int) -> MemoryRecord:
    return MemoryRecord(
        **_columns(row, MemoryRecord, skip={"state", "model", "recipe", "uses", "fixed", "broken"}),
        state=MemoryState(row.state),
        model=ModelFingerprint(**row.model),
        recipe=Recipe(**row.recipe),
        uses=uses,
        fixed=fixed,
        broken=broken,
    )


def episode_record(row: EpisodeRow) -> Episode:
    return Episode(
        **_columns(row, Episode, skip={"curve", "rollouts"}),
        curve=tuple(StepRecord(**step) for step in row.curve),
        rollouts=tuple(Rollout(**rollout) for rollout in row.rollouts),
    )


def episode_row(episode: Episode) -> EpisodeRow:
    plain = asdict(episode)
    return EpisodeRow(**plain | {"curve": list(plain["curve"]), "rollouts": list(plain["rollouts"])})


def job_record(row: JobRow) -> JobRecord:
    return JobRecord(
        **_columns(row, JobRecord, skip={"state", "recipe", "progress"}),
        state=JobState(row.state),
        recipe=Recipe(**row.recipe),
        progress=dict(row.progress),
    )


def use_record(row: UseRow) -> UseRecord:
    return UseRecord(
        **_columns(row, UseRecord, skip={"key_kind", "route", "outcome"}),
        key_kind=KeyKind(row.key_kind),
        route=Route(row.route),
        outcome=UseOutcome(row.outcome),
    )


def event_record(row: EventRow) -> EventRecord:
    return EventRecord(**_columns(row, EventRecord, skip={"kind"}), kind=EventKind(row.kind))


def pack(vector: Vector) -> bytes:
    """Little-endian float32, as ``KeyRow.vector`` holds it."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def unpack(data: bytes) -> Vector:
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)


def _columns(row: object, record: type, *, skip: set[str]) -> dict[str, Any]:
    """The fields of ``record`` that are columns of the same name and type."""
    return {field.name: getattr(row, field.name) for field in fields(record) if field.name not in skip}
