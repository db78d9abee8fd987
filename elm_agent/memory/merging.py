"""Which memories of a namespace could be one: groups that lie near each other, and which of each is worth most.

Looks only; ``condensing`` does it. Only like is put to like: memories of one task, one kind and size, one subject and
one origin, so that a person's wish to be forgotten still finds all that came of them, and what came in with a pack is
not mixed with one's own. What serves for a limited time is left alone, and so is what somebody brought back after its
place had been taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elm_agent.errors import NotFound
from elm_agent.memory.duplicates import near_duplicates
from elm_agent.memory.probe import Reference
from elm_agent.records import KeyKind, MemoryRecord, MemoryState
from elm_agent.storage.posterior import Weights
from elm_agent.storage.selection import Selection
from elm_agent.storage.superseding import Lineage, lineage_of

if TYPE_CHECKING:
    from elm_agent.memory.probe import Probe
    from elm_agent.storage.bank import Bank


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """``first``: the one that is worth most, or pinned. ``others``: those so similar to it, most useful first;
    ``similarities``: theirs to it, cosine."""

    first: MemoryRecord
    others: tuple[MemoryRecord, ...]
    similarities: tuple[float, ...]

    @property
    def members(self) -> tuple[MemoryRecord, ...]:
        return (self.first, *self.others)


def groups_of(
    bank: Bank,
    namespace: str,
    *,
    similarity: float,
    kind: KeyKind = KeyKind.INPUT,
    most: int = 8,
    weights: Weights | None = None,
    retiring: bool = False,
    without: Collection[str] = (),
) -> Iterator[Group]:
    """Disjoint groups of at least two active memories, each around the one of it that is worth most.

    Worth is the expected utility by ``weights``; of equals the one that the bank would evict last is worth more. A
    pinned memory is the first of its group or in none. All pairs are compared.

    Args:
        similarity: least cosine of keys of ``kind`` between the first and each other.
        most: members of a group; the others wait for another pass.
        retiring: the first is to go like the others, for a new one: only soft prompts, and none that is pinned.
        without: ids that are in no group.
    """
    view = Selection(bank.database, namespace, vault=bank.vault)
    alike: dict[tuple[object, ...], list[MemoryRecord]] = defaultdict(list)
    for memory in _best_first(bank, namespace, view, weights):
        apart = memory.id in without or memory.valid_until is not None
        stays = memory.pinned or memory.recipe.parameterisation != "soft_prompt"
        if not (apart or (retiring and stays)):
            alike[_likeness(memory)].append(memory)
    for memories in alike.values():
        yield from _near(bank, namespace, view, memories, similarity, kind, most)


def lineage(bank: Bank, namespace: str, memory_id: str) -> Lineage:
    """Whose place a memory took, and who took its own. Without events, as of a memory that is gone: nobody."""
    return lineage_of(bank.events(namespace, memory_id))


def references_of(bank: Bank, memory: MemoryRecord, probe: Probe) -> list[tuple[Reference, MemoryRecord]]:
    """The questions that a memory stands for, each with the memory to read before it.

    Its own, with itself; and those of memories whose place it took, of their ancestors too, with itself again, for it
    serves them now. Without those that are gone, that serve again, or whose vote was not clear.
    """
    found: list[tuple[Reference, MemoryRecord]] = []
    seen, waiting = {memory.id}, [memory]
    while waiting:
        one = waiting.pop(0)
        reference = probe.reference_of(bank, one)
        if reference is not None and all(other.question != reference.question for other, _ in found):
            found.append((reference, memory))
        for ancestor in lineage(bank, memory.namespace, one.id).supersedes:
            if ancestor in seen:
                continue
            seen.add(ancestor)
            try:
                record = bank.memory(memory.namespace, ancestor)
            except NotFound:  # purged: nothing of it may come back
                continue
            if record.state is MemoryState.RETIRED:
                waiting.append(record)
    return found


def _best_first(bank: Bank, namespace: str, view: Selection, weights: Weights | None) -> list[MemoryRecord]:
    """Active memories: pinned ones, then by utility, then as the bank would evict them, the last first."""
    memories = bank.memories(namespace, state=MemoryState.ACTIVE)
    rank = {memory_id: place for place, (memory_id, _) in enumerate(view.by_worth())}
    worth = bank.posteriors(namespace, [(namespace, memory.id) for memory in memories], weights)

    def order(memory: MemoryRecord) -> tuple[bool, float, int]:
        return not memory.pinned, -worth[namespace, memory.id].utility, -rank.get(memory.id, -1)

    return sorted(memories, key=order)


def _likeness(memory: MemoryRecord) -> tuple[object, ...]:
    recipe = memory.recipe
    size = memory.virtual_tokens if recipe.positions else (recipe.lora_rank, recipe.lora_alpha)
    return memory.task, memory.subject, memory.origin, recipe.parameterisation, size


def _near(
    bank: Bank,
    namespace: str,
    view: Selection,
    memories: list[MemoryRecord],
    similarity: float,
    kind: KeyKind,
    most: int,
) -> Iterator[Group]:
    if len(memories) < 2:
        return
    keys_NE = view.keys([memory.id for memory in memories], kind)
    pinned = sum(memory.pinned for memory in memories)
    stars: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for row, other, found in near_duplicates(keys_NE, similarity, staying=pinned):
        if row >= pinned:
            stars[other].append((row, found))
    for first, rows in sorted(stars.items()):
        others = [
            (memories[row], found) for row, found in rows if not lineage(bank, namespace, memories[row].id).restored
        ]
        if others and not lineage(bank, namespace, memories[first].id).restored:
            members, similarities = zip(*others[: most - 1], strict=True)
            yield Group(first=memories[first], others=members, similarities=similarities)
