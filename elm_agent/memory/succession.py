"""One group of memories and its successor: made or chosen, tried, and put in the others' place if it does not lose.

The questions that the memories came from are answered with their own memory and with the successor, against the
answers that were learnt for them, by the probe that admission has. Where the successor loses, a note in the ledger is
all that is left of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from elm_agent.errors import (
    InputError,
    JobCancelled,
    ModelError,
    NotFound,
    TaskError,
    TensorCorrupt,
    TensorMissing,
    TrainingError,
)
from elm_agent.memory.admission import ProbeResult
from elm_agent.memory.answering import describe
from elm_agent.memory.merging import Group, references_of
from elm_agent.memory.probe import Probe, Reference
from elm_agent.protocols import Observer, Trained
from elm_agent.records import DISTILLED, EventKind, KeyKind, MemoryRecord, MemoryState, Recipe, digest_of
from elm_agent.storage.adopt import Adopted
from elm_agent.storage.posterior import Weights

if TYPE_CHECKING:
    from elm_agent.adapters import Kept
    from elm_agent.storage.bank import Bank

Asked = Sequence[tuple[Reference, MemoryRecord]]
"""Questions with the memory that each of them has."""

MERGE, DISTIL = "merge", "distil"

_OF_ONE_GROUP = (InputError, ModelError, NotFound, TaskError, TensorCorrupt, TensorMissing, TrainingError)
"""What leaves one group as it was, while the pass goes on; ``ChangedMeanwhile`` is an ``InputError``."""

Distil = Callable[..., Trained]
"""``training.distilling.Distiller.distil``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """``merge``, ``distil``: least cosine of a group's keys; None: it is not done. ``most``: members of a group.

    ``may_lose``: questions that may go wrong beyond those that come right. ``steps``, ``learning_rate``: of
    distilling. ``kind``: of the keys. ``weights``: by which memories are worth more or less.
    """

    merge: float | None = None
    distil: float | None = None
    most: int = 8
    may_lose: int = 0
    steps: int = 20
    learning_rate: float = 5e-3
    kind: KeyKind = KeyKind.INPUT
    weights: Weights = field(default_factory=Weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What trying needs. ``distil``: None where the model cannot be trained."""

    probe: Probe
    distil: Distil | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One group and what became of it. ``successor``: who took the others' place; None: nobody, for ``reason``."""

    how: str  # MERGE or DISTIL
    first: str
    members: tuple[str, ...]
    questions: tuple[str, ...]
    similarity: float  # the least
    successor: str | None = None
    reason: str | None = None
    probe: ProbeResult | None = None
    given_up: bool = False
    seconds: float = 0.0


class Succession:
    """Tries groups of one namespace. ``over``: whether to stop; it is asked often."""

    def __init__(
        self,
        bank: Bank,
        namespace: str,
        rules: Rules,
        tools: Tools,
        *,
        actor: str,
        over: Callable[[], bool],
        tell: Observer,
    ) -> None:
        self._bank = bank
        self._namespace = namespace
        self._rules = rules
        self._tools = tools
        self._actor = actor
        self._over = over
        self._tell = tell

    def __call__(self, how: str, group: Group) -> Tried:
        """What became of a group. Whatever goes wrong with it leaves it as it was; ``Tried.reason`` says what.

        Raises ``StorageError``: a store refused.
        """
        started, tools, given_up = time.monotonic(), self._tools, False
        members: Sequence[MemoryRecord] = group.members if how == DISTIL else group.others
        questions = [pair for memory in members for pair in references_of(self._bank, memory, tools.probe)]
        members = [one for one in members if any(owner.id == one.id for _, owner in questions)]  # others stay
        said = told_of(how, group, questions)
        try:
            if len(members) < (2 if how == DISTIL else 1):
                return replace(said, reason="too few of its questions have a clear majority answer to be tried on")
            trained = self._trained(group, questions) if how == DISTIL else None
            kept = self._kept(group.first) if trained is None else _prompt(trained)
            result = self._probed(how, group, questions, kept)
            if result.broken - result.fixed > self._rules.may_lose:
                reason = (
                    f"with one for all {result.broken} of {result.past} answers went wrong and {result.fixed} came "
                    f"right, may_lose is {self._rules.may_lose}"
                )
                self._note(how, group, result)
                return replace(said, reason=reason, probe=result, seconds=time.monotonic() - started)
            successor = self._supersede(how, group, members, trained, result)
            return replace(said, successor=successor, probe=result, seconds=time.monotonic() - started)
        except JobCancelled:
            reason, given_up = "given up, for the time was over; the next pass begins it anew", True
        except _OF_ONE_GROUP as error:
            reason = describe(error)
        return replace(said, reason=reason, given_up=given_up, seconds=time.monotonic() - started)

    def _trained(self, group: Group, questions: Asked) -> Trained:
        from elm_agent.training.distilling import Lesson  # torch enters late: a dry run needs none

        assert self._tools.distil is not None
        initial = self._kept(group.first)
        return self._tools.distil(
            [Lesson(reference.question, self._kept(memory)) for reference, memory in questions],
            initial=initial,
            recipe=self._recipe(group.first),
            observe=self._tell,
            cancelled=self._over,
        )

    def _probed(self, how: str, group: Group, questions: Asked, successor: Kept) -> ProbeResult:
        result = self._tools.probe.compare(
            [(reference, self._kept(memory)) for reference, memory in questions],
            successor,
            task=group.first.task,
            max_new_tokens=group.first.recipe.max_new_tokens,
            cancelled=self._over,
        )
        self._tell("condense.probed", detail_of(how, group, before=result.before, after=result.after))
        return result

    def _supersede(
        self,
        how: str,
        group: Group,
        members: Sequence[MemoryRecord],
        trained: Trained | None,
        result: ProbeResult,
    ) -> str:
        return self._bank.supersede(
            self._namespace,
            group.first.id if trained is None else self._adopted(group, trained),
            {memory.id: memory.revision for memory in members},
            actor=self._actor,
            detail={"how": how, "probe": _numbers(result)},
            observe=self._tell,
        )

    def _adopted(self, group: Group, trained: Trained) -> Adopted:
        """The new memory bears the question of the one it began as, and all that makes its members alike."""
        first, bank = group.first, self._bank
        shares = [memory.final_vote_share for memory in group.members]
        return Adopted(
            question=first.question,
            task=first.task,
            prompt=_prompt(trained),
            keys=trained.keys,
            model=first.model,
            recipe=self._recipe(first),
            origin=first.origin,
            state=MemoryState.ACTIVE,
            final_vote_share=sum(shares) / len(shares),
            subject=first.subject,
            majority_answer=bank.episode(self._namespace, first.id).majority_answer,
            curve=trained.curve,
            rollouts=trained.rollouts,
            seconds=trained.seconds,
            event=EventKind.CREATED,
        )

    def _recipe(self, first: MemoryRecord) -> Recipe:
        return Recipe(
            parameterisation="soft_prompt",
            objective=DISTILLED,
            virtual_tokens=first.virtual_tokens,
            rollouts=1,
            steps=self._rules.steps,
            max_new_tokens=first.recipe.max_new_tokens,
            temperature=1.0,
            learning_rate=self._rules.learning_rate,
            kv_heads=first.recipe.kv_heads,
        )

    # --- saying ---------------------------------------------------------------------------------------------

    def _kept(self, memory: MemoryRecord) -> Kept:
        return self._bank.prompt(memory.namespace, memory.id)

    def _note(self, how: str, group: Group, result: ProbeResult) -> None:
        """So that the next pass does not pay for the same again."""
        detail = {"how": how, "members": sorted(memory.id for memory in group.members), "probe": _numbers(result)}
        told = detail | {"tried": name_of(how, group, self._rules)}
        self._bank.note_event(self._namespace, EventKind.NOT_MERGED, actor=self._actor, detail=told)


def name_of(how: str, group: Group, rules: Rules) -> str:
    """What is tried: another group, or other settings, is another trial."""
    asked: list[Any] = [how, group.first.id, sorted(memory.id for memory in group.members), rules.may_lose]
    return digest_of(asked if how == MERGE else [*asked, rules.steps, rules.learning_rate])


def told_of(how: str, group: Group, asked: Asked | None = None) -> Tried:
    """What is said of a group before it is tried. ``asked``: the questions, where they are known."""
    questions = [one.question for one in (group.members if asked is None else [pair[0] for pair in asked])]
    return Tried(
        how=how,
        first=group.first.id,
        members=tuple(memory.id for memory in group.members),
        questions=tuple(questions),
        similarity=min(group.similarities),
    )


def detail_of(how: str, group: Group, **more: Any) -> dict[str, Any]:
    """For an observer."""
    return {"how": how, "namespace": group.first.namespace, "members": len(group.members), **more}


def _prompt(trained: Trained) -> Kept:
    from elm_agent.adapters import Weights

    assert not isinstance(trained.prompt, Weights), "a student is a soft prompt"
    return trained.prompt


def _numbers(result: ProbeResult) -> dict[str, Any]:
    """For the ledger, where it stays for ever."""
    return asdict(result) | {"before": result.before, "after": result.after}
