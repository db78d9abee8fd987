"""Find the memory that may help with a question. Knows keys and tensors; generates nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from elm_agent.errors import NotFound, TensorCorrupt, TensorMissing
from elm_agent.memory.abstention import Abstaining
from elm_agent.memory.ranking import Ranked, Ranking, rank
from elm_agent.protocols import LanguageModel
from elm_agent.records import Hit, KeyKind, MemoryRecord

if TYPE_CHECKING:
    from elm_agent.adapters import Kept
    from elm_agent.storage.bank import Bank

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """What was found. ``prompt`` is None when nothing was; then ``reason`` says why and ``failed`` whose fault.

    ``considered``: every candidate with the parts of its score, best first, those below the threshold last; empty
    when nobody asked for scores. ``others``: those that come after it, as many as were wanted and are there.
    """

    memory_id: str | None = None
    namespace: str | None = None  # where the memory lives: one's own, or a shared one
    similarity: float | None = None  # cosine
    prompt: Kept | None = None
    reason: str | None = None
    failed: bool = False  # a memory should have been there, but could not be read
    considered: tuple[Ranked, ...] = ()
    others: tuple[Hit, ...] = ()


def recall(
    question: str,
    *,
    bank: Bank,
    model: LanguageModel,
    namespace: str,
    shared: Sequence[str] = (),
    kind: KeyKind = KeyKind.INPUT,
    top_k: int = 1,
    others: int = 0,
    min_similarity: float = -1.0,
    exclude_same_question: bool = False,
    ranking: Ranking | None = None,
    abstaining: Abstaining | None = None,
    explain: bool = False,
) -> Recall:
    """The nearest usable memory of ``question`` (METHOD section 2), its prompt in the bank's cache.

    Looks at the ``top_k`` nearest and takes the first whose tensor can be read. Abstains when the nearest is
    below ``min_similarity``, a threshold of ours that the paper does not have. Namespaces of ``shared`` are searched
    beside one's own. ``ranking``: another order of the nearest, see ``memory.ranking``. ``abstaining``: those that
    are more likely to hurt than to help are passed over, as far as uses tell, but for a few questions that explore.
    ``others``: how many further ones to name; they are not read. ``explain``: say in ``considered`` what was looked
    at, which changes nothing else.

    Raises:
        IndexUnavailable, StorageError: the bank cannot be asked at all.
        ModelError: the model cannot make a query of this kind.
    """
    by = ranking or Ranking()
    fitted = None if abstaining is None or abstaining.calibration is None else abstaining
    orders = by.active or explain or fitted is not None
    hits = bank.nearest(
        namespace,
        kind,
        model.query(question, kind),
        max(top_k + others, by.candidates) if orders else top_k + others,
        shared=shared,
        exclude_question=question if exclude_same_question else None,
    )
    if not hits:
        return Recall(reason="the bank has no other memory" if exclude_same_question else "the bank has no memory")
    near = [hit for hit in hits if hit.similarity >= min_similarity]
    considered: tuple[Ranked, ...] = ()
    if orders:
        near, considered = _ordered(question, bank, namespace, hits, len(near), by, fitted)
    explored = None
    if near and fitted is not None:
        likely, explored = _likely(question, near, considered, fitted)
        if not likely:
            return Recall(similarity=near[0].similarity, reason=explored, considered=considered)
        near = likely
    if not near:
        best = hits[0]
        return Recall(
            similarity=best.similarity,
            reason=f"the nearest memory has similarity {best.similarity:.3f}, the threshold is {min_similarity:.3f}",
            considered=considered,
        )
    passed_over = []
    for place, hit in enumerate(near[:top_k], start=1):
        try:
            prompt = bank.prompt(hit.namespace, hit.memory_id)
        except (TensorMissing, TensorCorrupt, NotFound) as error:
            ids = {"memory_id": hit.memory_id, "namespace": hit.namespace}
            logger.warning("memory %s is unusable: %s", hit.memory_id, error, extra=ids)
            passed_over.append(f"memory {hit.memory_id} is unusable: {error}")
            continue
        return Recall(
            memory_id=hit.memory_id,
            namespace=hit.namespace,
            similarity=hit.similarity,
            prompt=prompt,
            reason="; ".join([*passed_over, *filter(None, [explored])]) or None,
            considered=considered,
            others=tuple(near[place : place + others]),
        )
    best = near[0]
    return Recall(
        memory_id=best.memory_id,
        namespace=best.namespace,
        similarity=best.similarity,
        reason="; ".join(passed_over),
        failed=True,
        considered=considered,
    )


def nearest_memories(
    question: str,
    *,
    bank: Bank,
    model: LanguageModel,
    namespace: str,
    limit: int,
    shared: Sequence[str] = (),
    kind: KeyKind = KeyKind.INPUT,
    min_similarity: float = -1.0,
) -> list[tuple[Hit, MemoryRecord]]:
    """At most ``limit`` active memories nearest to a question, best first, with their records: for who looks at them.

    Reads no tensors and notes no use. A memory that is purged in the meantime is left out.

    Raises:
        NotFound: the namespace is not in this bank.
        InputError, IndexUnavailable, ModelError: as ``Bank.nearest`` and the model's query.
    """
    query = model.query(question, kind)
    found = []
    for hit in bank.nearest(namespace, kind, query, limit, min_similarity=min_similarity, shared=shared):
        with suppress(NotFound):
            found.append((hit, bank.memory(hit.namespace, hit.memory_id)))
    return found


def _ordered(
    question: str, bank: Bank, namespace: str, hits: Sequence[Hit], near: int, by: Ranking, fitted: Abstaining | None
) -> tuple[list[Hit], tuple[Ranked, ...]]:
    """The first ``near`` hits in the order of their scores, and all with the parts of theirs."""
    worth = bank.posteriors(namespace, [(hit.namespace, hit.memory_id) for hit in hits], by.weights)
    ranked = rank(question, hits, worth, by)
    if fitted is not None:
        ranked = [replace(one, chance=fitted.chance(one.hit.similarity, one.posterior.utility)) for one in ranked]
    usable = {(hit.namespace, hit.memory_id) for hit in hits[:near]}
    first = [one for one in ranked if (one.hit.namespace, one.hit.memory_id) in usable]
    return [one.hit for one in first], (*first, *(one for one in ranked if one not in first))


def _likely(
    question: str, near: list[Hit], considered: Sequence[Ranked], fitted: Abstaining
) -> tuple[list[Hit], str | None]:
    """Those of ``near`` whose chance of helping is enough; else none or, to explore, all of them, and why."""
    of = {(one.hit.namespace, one.hit.memory_id): one.chance or 0.0 for one in considered}
    chances = [of[hit.namespace, hit.memory_id] for hit in near]
    likely = [hit for hit, chance in zip(near, chances, strict=True) if chance >= fitted.min_chance]
    if likely:
        return likely, None
    said = (
        f"the best chance that a memory helps is {max(chances):.3f}, the least is {fitted.min_chance:.3f} "
        f"(calibrated on {fitted.uses} uses)"
    )
    return (near, f"{said}; it is used all the same, to go on learning") if fitted.explores(question) else ([], said)
