"""The digest of a memory that the ledger bears witness to: what it covers, and that it outlives younger fields."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from bank_helpers import trained, unit

from elm_agent.records import Episode
from elm_agent.storage.ledger.proofs import record_proof

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def episode() -> Episode:
    made = trained(unit(1, 0, 0, 0))
    return Episode(
        id="ep_1",
        namespace="default",
        question="What is 7 times 8?",
        task="math",
        majority_answer="56",
        curve=made.curve,
        rollouts=made.rollouts,
        seed=7,
        seconds=0.75,
        created_at=NOW,
    )


def proof(one: Episode) -> str:
    return record_proof(one, prompt=b"prompt", keys=[("input", b"key")], model={"name": "tiny"}, recipe={"steps": 1})


def test_a_proof_of_before_a_field_came_still_holds() -> None:
    # Written by the library that had no ratios.
    assert proof(episode()) == "record sha256:09872df6fc328f4cb6e6cf3b59648ab8933a8a26b9b3fdcb3cfbfaf3167f0d6d"


def test_a_field_that_came_later_is_covered_where_it_says_something() -> None:
    plain = episode()
    proofs = set()
    for values in ({}, {"ratio_mean": 1.0}, {"ratio_max": 1.0}, {"ratio_max": 1.5}):
        proofs.add(proof(replace(plain, curve=(replace(plain.curve[0], **values),))))
    assert len(proofs) == 4
