"""What a memory is, in one digest, so that the ledger can bear witness to it. Pure; knows no tables and no vault.

The event that makes a memory carries this digest as its note: the chain covers the note by a salted digest, and a
purge erases note and salt, so that nobody can test a guess of what the memory was. ``doctor`` compares: a key, a
prompt, a question or a rollout that was changed behind the bank's back no longer fits what the ledger says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from elm_agent.records import Episode, Rollout, StepRecord
from elm_agent.storage.sql.schema import storable

PREFIX = "record "
_YOUNGER = frozenset({"ratio_mean", "ratio_max"})  # than the first proofs: where None, they are left out


def record_proof(
    episode: Episode,
    *,
    prompt: bytes,
    keys: Iterable[tuple[str, bytes]],
    model: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> str:
    """``record sha256:<hex>`` over all of a memory that never changes.

    ``prompt``: its bytes as safetensors, not sealed. ``keys``: (kind, little-endian float32). Whether the texts are
    sealed in the database makes no difference: it is over what they say.
    """
    content = {
        "question": storable(episode.question),
        "task": episode.task,
        "majority_answer": None if episode.majority_answer is None else storable(episode.majority_answer),
        "seed": episode.seed,
        "curve": [_flat(step) for step in episode.curve],
        "rollouts": [_flat(rollout) for rollout in episode.rollouts],
        "prompt": hashlib.sha256(prompt).hexdigest(),
        "keys": {kind: hashlib.sha256(vector).hexdigest() for kind, vector in keys},
        "model": dict(model),
        "recipe": dict(recipe),
    }
    # ASCII: a rollout may hold what UTF-8 has no bytes for
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{PREFIX}sha256:{hashlib.sha256(text.encode('ascii')).hexdigest()}"


def horizon(valid_until: datetime | None) -> str | None:
    """``valid_until`` as the detail of an event says it."""
    return None if valid_until is None else valid_until.astimezone(UTC).isoformat()


def _flat(record: StepRecord | Rollout) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in record.__slots__}
    return {name: value for name, value in values.items() if value is not None or name not in _YOUNGER}
