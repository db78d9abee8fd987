"""What the runner, the methods and the reports agree on. Plain values: knows nothing of torch, files or terminals.

A run is a folder, and everything a report needs is in it, so reports are made without a model:

    run.json            protocol, plan, settings, environment, command, model fingerprint, task sets with their faults
    items.jsonl         every ``Item`` that was asked or learned from: {"task": ..., **Item}
    generations.jsonl   one ``GenerationLine`` each, in the order in which they happened; on disk before the next one
    work/               what methods keep (banks, states); no report reads it

Orders. *online*: for each method and seed the items are shuffled by the seed, where the set has parts each of them
alone and one after the other; each item is answered with what was learned from the items before it, and only then
learned from: lines ``answer`` 0, ``learn`` 0, ``answer`` 1, ... *offline*: each item is learned from alone, and each
memory then answers every item, without retrieval or verification: ``learner`` names the item that the memory came
from; its own item is in the matrix too. *transfer*: ``source`` is gone through online (lines with ``task`` =
``source``), then every item of ``task`` is answered with what was learned there, and nothing more is learned.

A failure is a record, never a wrong answer: a line with ``failure`` has ``correct`` None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from elm_agent.bench.evidence.beside import Stop
from elm_agent.bench.evidence.clock import SharedClock
from elm_agent.records import Candidate, question_digest

if TYPE_CHECKING:
    from elm_agent.protocols import LanguageModel, Observer, Task
    from elm_agent.settings import Settings

FORMAT = 1
"""Version of a run folder."""

HIDDEN = ""
"""What stands for the reference answer where a method may not see it."""

SHARED = "shared_with_seed"
"""In the ``detail`` of an answer that was generated for another seed, which is its value."""


class Protocols(StrEnum):
    """How a set of questions is gone through; see above."""

    ONLINE = "online"
    OFFLINE = "offline"
    TRANSFER = "transfer"


class Phase(StrEnum):
    """What a line tells of."""

    ANSWER = "answer"
    LEARN = "learn"


# --- questions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question. ``id`` is unique in its task set and never changes; ``answer`` is its reference."""

    id: str
    question: str
    answer: str
    family: str  # what a report groups by
    split: str = "test"  # "train" or "test" (held-out templates)
    part: str = ""  # of a stream that changes on its way: which part; parts come in the order of the set

    @property
    def digest(self) -> str:
        """Equal questions have equal digests."""
        return question_digest(self.question)

    def blind(self) -> Item:
        """The same question without its reference: all that a method gets, unless it ``sees_answers``."""
        return replace(self, answer=HIDDEN)


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of a data set that no item was made of, and why. It counts as nothing, least of all as a wrong answer."""

    where: str  # such as "line 12" or "row 3"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSet:
    """Questions of one kind. ``kind``: the name of the task that asks, extracts and compares (``elm_agent.tasks``).

    ``judge(item, answer)`` says whether an extracted answer is right; None: by equivalence with the reference.
    ``duplicates``: ids of items whose questions are equal, each group in order.
    """

    name: str
    kind: str
    items: tuple[Item, ...]
    faults: tuple[Fault, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    judge: Callable[[Item, str], bool] | None = field(default=None, compare=False, repr=False)


# --- what methods return ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateLine:
    """One text that was generated while a question was answered.

    ``role``: "zero_shot", "memory", "sample", "critique" or whatever a method calls it; a method that generated the
    plain greedy answer calls it "zero_shot", so that what it fixed and broke can be counted. "opinion" is what a
    memory said that did not serve. ``correct`` is the runner's to set, for candidates with an ``answer``; a
    method leaves it None. Without an answer a "zero_shot", "memory", "opinion" or "sample" is wrong, and any other
    role is neither right nor wrong.
    """

    role: str
    text: str
    answer: str | None = None  # extracted; None: there is none
    tokens: int = 0  # generated
    mean_logprob: float | None = None
    self_certainty: float | None = None
    finished: bool | None = None
    seconds: float | None = None
    memory_id: str | None = None
    score: float | None = None  # of the verifier
    correct: bool | None = None

    @classmethod
    def of(cls, role: str, candidate: Candidate) -> CandidateLine:
        """A candidate of the library under the name of its role."""
        return cls(role=role, **asdict(candidate))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An answered question. ``tokens`` and ``prompt_tokens``: generated and read, over all calls of the model."""

    answer: str | None  # extracted; None: the text has none, which is wrong and no failure
    text: str
    candidates: tuple[CandidateLine, ...] = ()
    route: str | None = None  # a ``records.Route`` where the method decides between two candidates
    reason: str | None = None
    memory_id: str | None = None  # what was retrieved; of text memories any id that is the same each time
    memory_item: str | None = None  # id of the item that the memory came from, where the method knows
    similarity: float | None = None
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float | None = None  # None: the runner's clock counts
    detail: Mapping[str, Any] = field(default_factory=dict)  # plain JSON: what else explains the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What was learned from a question. ``kept`` is plain JSON, and all that ``restore`` is given in a later process:
    text in it, names of files in ``Workplace.folder`` for anything larger."""

    memory_id: str | None = None  # None: nothing was kept
    state: str | None = None  # a ``records.MemoryState`` where there are such
    reason: str | None = None
    texts: tuple[CandidateLine, ...] = ()  # what was generated on the way, if it is to be read later
    curve: tuple[Mapping[str, Any], ...] = ()  # one ``StepRecord`` as a dict for each training step
    key: tuple[float, ...] | None = None  # retrieval key, for the map of the bank
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float | None = None  # None: the runner's clock counts. Given where work of an earlier method is reused
    kept: Mapping[str, Any] = field(default_factory=dict)


NOTHING = Learned(reason="this method does not learn")


# --- methods ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """What a method works with. ``model`` and ``task`` are shared: a method never closes them.

    Everything random depends on ``seed`` and the item (``item_seed``), never on time or order of calls, so that a
    run that was killed and taken up again gives what an uninterrupted one does.
    """

    model: LanguageModel
    task: Task
    settings: Settings
    seed: int
    folder: Path  # of this method and seed alone; exists, and outlives the process
    shared: Path  # of the whole run: trained memories that several methods can use
    observe: Observer
    judge: Callable[[Item, str], bool] | None = None  # whether an answer is right: for methods that ``sees_answers``
    clock: SharedClock = field(default_factory=SharedClock)  # of the whole run: for work that is timed by its method
    stop: Stop = field(default_factory=Stop)  # of the whole run: to be looked at in work that takes long


class Method(Protocol):
    """A way to answer questions in a stream. One object serves one method name and seed, from one thread; other
    objects are used beside it, also of the same name.

    What raises is recorded as the failure of that question, and the stream goes on; but a ``StorageError`` ends the
    run, which can be taken up again. No method may serve a question with what it learned from an equal one
    (``Item.digest``).
    """

    name: str
    learns: bool  # False: ``learn`` is never called
    sees_answers: bool  # True only for oracles and ground-truth references: items come with their ``answer``

    def answer(self, item: Item) -> Outcome:
        """Answer with what was learned so far.

        A process may be killed after this and before the line is kept; it is then called again with the same. So
        nothing is changed in here that a second answer would meet: what has to be written down waits for ``Notes``.
        """
        ...

    def learn(self, item: Item, outcome: Outcome | None) -> Learned:
        """Learn from a question. ``outcome``: how it was answered; None when answering failed.

        A process may be killed after this and before the line is kept; it is then called again with the same.
        """
        ...

    def restore(self, item: Item, learned: Learned) -> None:
        """Take up what ``learn`` returned in an earlier process; in the order of learning, before anything else."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


@runtime_checkable
class Notes(Protocol):
    """A method that writes down what its answers were: a bank notes which memory served and what came of it."""

    def note(self, item: Item, outcome: Outcome) -> None:
        """The line of this answer is on disk. A later process tells it again of what was answered before, in order:
        the same answer twice is noted once."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A method or maker with work that depends on each item alone, and is quicker done for many at once."""

    def prepare(self, items: Sequence[Item]) -> None:
        """Told once, before the first answer, what will be learned from. The results are the same without it."""
        ...


class Maker(Protocol):
    """One memory from one question, put before any other: the offline protocol of a method that trains."""

    name: str
    sees_answers: bool

    def learn(self, item: Item) -> Learned:
        """The memory of one item. In a later process it may be called again for what was learned already."""
        ...

    def answer_with(self, learner: Item, items: Sequence[Item]) -> list[Outcome]:
        """The plain greedy answers of ``items`` with the memory of ``learner``, in order; each one candidate
        "memory"."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


MakerFactory = Callable[[str, Workplace], Maker]
"""As ``MethodFactory``, in ``MAKERS``."""

MethodFactory = Callable[[str, Workplace], Method]
"""``factory(name, workplace)``: ``METHODS`` in ``elm_agent.bench.evidence.methods`` has one for each name.

A name may carry options after a colon, ``elm_kv:lora``: the factory under the part before the colon gets all of it.
"""


def item_seed(workplace: Workplace, item: Item, part: int = 0) -> int:
    """A seed in [0, 2**48) of an item and a part of the work on it; the same in every process."""
    from elm_agent.records import digest_of

    return int(digest_of([workplace.seed, item.digest, part]).removeprefix("sha256:")[:12], 16)


# --- what is stored ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationLine:
    """One line of ``generations.jsonl``: an answered question (phase ``answer``) or one learned from (``learn``)."""

    phase: Phase
    method: str
    seed: int
    task: str  # the set that the item is of
    source: str | None  # the set that the memories come from; None: nothing was learned
    position: int  # in this seed's order, from 0
    item_id: str
    family: str
    split: str
    part: str = ""
    learner: str | None = None  # offline: id of the item whose memory answered
    answer: str | None = None
    text: str | None = None
    candidates: tuple[CandidateLine, ...] = ()
    route: str | None = None
    reason: str | None = None
    memory_id: str | None = None  # answer: what was retrieved; learn: what was made
    memory_item: str | None = None
    similarity: float | None = None
    state: str | None = None  # learn
    curve: tuple[Mapping[str, Any], ...] = ()  # learn
    key: tuple[float, ...] | None = None  # learn
    kept: Mapping[str, Any] = field(default_factory=dict)  # learn
    detail: Mapping[str, Any] = field(default_factory=dict)  # answer
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    correct: bool | None = None  # None: learn, or a failure
    failure: str | None = None
    at: str = ""  # time, UTC, ISO 8601

    @property
    def name(self) -> tuple[str, str, int, str, str | None, str, str | None]:
        """What it is the line of; a run has one line of each name."""
        return (self.phase, self.method, self.seed, self.task, self.source, self.item_id, self.learner)

    def candidate(self, role: str) -> CandidateLine | None:
        """The first candidate of a role."""
        return next((one for one in self.candidates if one.role == role), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; ``of_json`` is its inverse."""
        return asdict(self)

    @classmethod
    def of_json(cls, record: Mapping[str, Any]) -> GenerationLine:
        """The line of a record; fields of a younger library are left out."""
        known = {one.name: record[one.name] for one in fields(cls) if one.name in record}
        names = {one.name for one in fields(CandidateLine)}
        candidates = ({name: one[name] for name in one if name in names} for one in record.get("candidates", ()))
        known["candidates"] = tuple(CandidateLine(**one) for one in candidates)
        known["curve"] = tuple(record.get("curve", ()))
        known["key"] = None if record.get("key") is None else tuple(record["key"])
        return cls(**known | {"phase": Phase(record["phase"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A run folder as it was read (``elm_agent.bench.evidence.folder.read_run``), finished or not."""

    folder: Path
    run: Mapping[str, Any]  # run.json
    items: Mapping[tuple[str, str], Item]  # by task and id
    lines: tuple[GenerationLine, ...]
