"""Rows to records and back, sealed on the way in and opened on the way out. Nothing else: no query, no decision."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from elm_agent.errors import ElmError
from elm_agent.records import (
    Effect,
    Episode,
    EventKind,
    EventRecord,
    Feedback,
    JobRecord,
    JobState,
    KeyKind,
    MemoryRecord,
    MemoryState,
    ModelFingerprint,
    Recipe,
    Review,
    Rollout,
    Route,
    StepRecord,
    Tier,
    UseOutcome,
    UseRecord,
    Vector,
)
from elm_agent.storage.sql.faults import Damaged
from elm_agent.storage.sql.schema import EpisodeRow, EventRow, JobRow, MemoryRow, NamespaceRow, UseRow
from elm_agent.storage.vault.base import Vault

_SEALED = "sealed"

Row = TypeVar("Row")
Record = TypeVar("Record")
P = ParamSpec("P")


def _whole(convert: Callable[Concatenate[Row, P], Record]) -> Callable[Concatenate[Row, P], Record]:
    """Turn whatever a damaged row leads to into ``Damaged``."""

    @wraps(convert)
    def checked(row: Row, /, *args: P.args, **options: P.kwargs) -> Record:
        try:
            return convert(row, *args, **options)
        except ElmError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            where = f"a row of {getattr(row, '__tablename__', '?')} of namespace {getattr(row, 'namespace', '?')!r}"
            raise Damaged(f"{where} is damaged ({type(error).__name__}: {str(error)[:100]})") from error

    return checked


def fingerprint_of(row: NamespaceRow) -> ModelFingerprint:
    return ModelFingerprint(
        row.model_name, row.model_weights, row.model_tokenizer, row.model_template, row.model_width
    )


@_whole
def memory_record(row: MemoryRow, vault: Vault, uses: int, fixed: int, broken: int) -> MemoryRecord:
    return MemoryRecord(
        **_columns(
            row,
            MemoryRecord,
            skip={"state", "model", "recipe", "question", "reason", "review", "uses", "fixed", "broken"},
        ),
        state=MemoryState(row.state),
        review=None if row.review is None else Review(row.review),
        model=ModelFingerprint(**row.model),
        recipe=Recipe(**row.recipe),
        question=vault.open(row.namespace, row.question),
        reason=opened(vault, row.namespace, row.reason),
        uses=uses,
        fixed=fixed,
        broken=broken,
    )


@_whole
def recipe_of(row: MemoryRow) -> Recipe:
    recipe = Recipe(**row.recipe)
    if not recipe.lora_rank >= 1:  # by which its matrices are scaled
        raise ValueError(f"lora_rank is {recipe.lora_rank!r}")
    return recipe


@_whole
def episode_record(row: EpisodeRow, vault: Vault) -> Episode:
    return Episode(
        **_columns(row, Episode, skip={"curve", "rollouts", "question", "majority_answer"}),
        question=vault.open(row.namespace, row.question),
        majority_answer=opened(vault, row.namespace, row.majority_answer),
        curve=tuple(StepRecord(**step) for step in opened_json(vault, row.namespace, row.curve)),
        rollouts=tuple(Rollout(**rollout) for rollout in opened_json(vault, row.namespace, row.rollouts)),
    )


def episode_row(episode: Episode, vault: Vault) -> EpisodeRow:
    plain, namespace = asdict(episode), episode.namespace
    texts = {
        "question": vault.seal(namespace, episode.question),
        "majority_answer": sealed(vault, namespace, episode.majority_answer),
        "curve": sealed_json(vault, namespace, list(plain["curve"])),
        "rollouts": sealed_json(vault, namespace, list(plain["rollouts"])),
    }
    return EpisodeRow(**plain | texts)


@_whole
def job_record(row: JobRow, vault: Vault) -> JobRecord:
    return JobRecord(
        **_columns(row, JobRecord, skip={"state", "recipe", "progress", "question", "reason"}),
        state=JobState(row.state),
        recipe=Recipe(**row.recipe),
        question=vault.open(row.namespace, row.question),
        reason=opened(vault, row.namespace, row.reason),
        progress=dict(opened_json(vault, row.namespace, row.progress)),
    )


_USE_TEXTS = ("question", "reason", "answer", "memory_answer", "zero_shot_answer", "feedback_answer", "review_note")
_USE_WORDS = ("key_kind", "route", "outcome", "feedback", "feedback_effect", "tier", "review")


@_whole
def use_record(row: UseRow, vault: Vault) -> UseRecord:
    texts = {name: opened(vault, row.namespace, getattr(row, name)) for name in _USE_TEXTS}
    return UseRecord(
        **_columns(row, UseRecord, skip={"memory_namespace", *_USE_WORDS, *_USE_TEXTS}),
        memory_namespace="" if row.memory_namespace == row.namespace else row.memory_namespace,
        **texts,  # type: ignore[arg-type]  # the question is never None
        key_kind=KeyKind(row.key_kind),
        route=Route(row.route),
        outcome=UseOutcome(row.outcome),
        feedback=None if row.feedback is None else Feedback(row.feedback),
        feedback_effect=None if row.feedback_effect is None else Effect(row.feedback_effect),
        tier=None if row.tier is None else Tier(row.tier),
        review=None if row.review is None else Review(row.review),
    )


def use_values(use: UseRecord, vault: Vault) -> dict[str, Any]:
    """The columns of a new ``UseRow``."""
    namespace = use.namespace
    texts = {name: sealed(vault, namespace, getattr(use, name)) for name in _USE_TEXTS}
    subject = None if use.subject is None else vault.blind(namespace, use.subject)
    home = {"memory_namespace": use.memory_namespace or namespace, "subject": subject, "ledgered": None}
    return asdict(use) | texts | home


@_whole
def event_record(row: EventRow, vault: Vault) -> EventRecord:
    note = opened(vault, row.namespace, row.note)
    return EventRecord(**_columns(row, EventRecord, skip={"kind", "note"}), kind=EventKind(row.kind), note=note)


def sealed(vault: Vault, namespace: str, text: str | None) -> str | None:
    return None if text is None else vault.seal(namespace, text)


def opened(vault: Vault, namespace: str, text: str | None) -> str | None:
    return None if text is None else vault.open(namespace, text)


def sealed_json(vault: Vault, namespace: str, value: Any) -> Any:
    """A list or dict as it is stored: itself, or one sealed text in a list or dict."""
    text = json.dumps(value, allow_nan=False)
    hidden = vault.seal(namespace, text)
    if hidden == text:
        return value
    return [{_SEALED: hidden}] if isinstance(value, list) else {_SEALED: hidden}


def opened_json(vault: Vault, namespace: str, value: Any) -> Any:
    hidden = sealed_text(value)
    return json.loads(vault.open(namespace, hidden)) if hidden else value


def sealed_text(value: Any) -> str:
    """The sealed text that stands for a list or dict; empty when it is not sealed."""
    only = value[0] if isinstance(value, list) and len(value) == 1 else value
    return str(only[_SEALED]) if isinstance(only, dict) and only.keys() == {_SEALED} else ""


def pack(vector: Vector) -> bytes:
    """Little-endian float32, as ``KeyRow.vector`` holds it."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def unpack(data: bytes) -> Vector:
    """Raises ``Damaged`` for what is no vector."""
    try:
        return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
    except (ValueError, TypeError) as error:
        raise Damaged(f"a key is damaged: {error}; run `elm-agent doctor --repair`") from error


def _columns(row: object, record: type, *, skip: set[str]) -> dict[str, Any]:
    """The fields of ``record`` that are columns of the same name and type."""
    return {field.name: getattr(row, field.name) for field in fields(record) if field.name not in skip}
