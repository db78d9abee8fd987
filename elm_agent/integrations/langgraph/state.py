"""What flows through the graph: texts, numbers, ids and plain dicts, so that any checkpointer can keep it.

Tensors, models and connections are bound to the nodes when the graph is built and never enter the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, get_args

from elm_agent.errors import InputError
from elm_agent.memory.answering import check_subject
from elm_agent.memory.tiers import Wanted
from elm_agent.records import Route
from elm_agent.settings import Settings, check_namespace

REVIEWS = ("off", "interrupt", "queue")


class Question(TypedDict):
    """Input. ``subject``: whose experience this is, so that it can be forgotten; wins over that of the context."""

    question: str
    subject: NotRequired[str | None]


class RunContext(TypedDict, total=False):
    """Optional context of one run; what is left out comes from the runtime's settings. JSON-safe.

    ``pieces``: also emit each piece of both candidates' text as it is drawn, as ``elm.piece``.
    ``explain``: also return why the answer is what it is, as ``explanation``.
    ``note``: False: the bank keeps no use of the memory, so that the answer leaves no trace.
    ``tier``: "auto", "cheap", "normal" or "thorough"; see ``memory.tiers``.
    ``review``: "off", "interrupt" or "queue": whether a person is asked before a memory's answer takes the place of
    another plain one.
    """

    namespace: str
    learn: bool
    min_similarity: float
    exclude_same_question: bool
    subject: str | None
    pieces: bool
    explain: bool
    note: bool
    tier: str
    review: str


class CandidateState(TypedDict):
    """A ``records.Candidate`` as a plain dict."""

    text: str
    answer: str | None
    tokens: int
    mean_logprob: float
    self_certainty: float
    finished: bool
    seconds: float
    memory_id: str | None
    score: float | None


class Candidates(TypedDict):
    """Both answers; one that was not generated is None. ``zero_shot`` is there but for route ``memory_alone``."""

    memory: CandidateState | None
    zero_shot: CandidateState | None


class Opinion(TypedDict):
    """A further memory that may be heard."""

    namespace: str
    memory_id: str
    similarity: float


class Heard(Opinion):
    """A memory that was heard beside the one that serves: what it said, and its ``records.Route``."""

    use_id: str
    route: str
    candidate: CandidateState
    in_words: NotRequired[bool]  # it was asked after the memory's own example, not with its prompt


def use_of(heard: Heard) -> dict[str, Any]:
    """What its ``records.UseRecord`` has other than that of the memory that serves."""
    return {
        "id": heard["use_id"],
        "memory_id": heard["memory_id"],
        "memory_namespace": heard["namespace"],
        "similarity": heard["similarity"],
        "route": Route(heard["route"]),
        "memory_answer": heard["candidate"]["answer"],
    }


class Answer(TypedDict):
    """Output."""

    answer: str | None
    text: str
    route: str  # a ``records.Route``
    reason: str | None
    candidates: Candidates
    memory_id: str | None
    memory_namespace: str | None  # where the memory lives: one's own namespace, or a shared one
    similarity: float | None
    use_id: str | None  # for ``runtime.feedback``, or ``bank.settle_use`` once the right answer is known
    job_id: str | None
    heard: NotRequired[list[Heard]]  # where two answers differed and further memories were asked
    example: NotRequired[CandidateState | None]  # likewise, what was said after the memory's own example
    by_prompt: NotRequired[CandidateState | None]  # what the memory said without words, where these took its place
    explanation: NotRequired[dict[str, Any] | None]  # see ``memory.explaining``; only of runs that ask for it


class Options(TypedDict):
    """The context of a run, checked and completed; kept in the state so that a resumed run goes on as it began."""

    namespace: str
    learn: bool
    min_similarity: float
    exclude_same_question: bool
    subject: str | None
    pieces: NotRequired[bool]  # runs that were checkpointed by earlier versions have none
    explain: NotRequired[bool]
    note: NotRequired[bool]
    tier: NotRequired[Wanted]
    review: NotRequired[str]  # as in the context; "interrupt" only where the run can be resumed
    manual_threshold: NotRequired[bool]  # whether somebody set ``min_similarity``: then it alone decides


class Decided(TypedDict):
    """What a person said when they were asked: "memory" or "zero_shot", and why."""

    choice: str
    note: str | None


class State(Question, Answer):
    """Everything the nodes tell each other."""

    options: Options
    answer_id: NotRequired[str]  # of the run, for observers
    memory_failed: bool
    memory_note: str | None  # why there is no memory, or what was passed over to find this one
    memory_candidate: CandidateState | None
    zero_shot_candidate: CandidateState | None
    considered: NotRequired[list[dict[str, Any]]]  # scores of ``memory.explaining``, for ``explain``
    abstention: NotRequired[dict[str, Any] | None]  # likewise
    opinions: NotRequired[list[Opinion]]  # the next nearest memories, for two different answers
    asks_example: NotRequired[bool]  # likewise, whether the memory may also speak in words
    tier: NotRequired[str]  # a ``records.Tier``: what the answer costs
    budget: NotRequired[dict[str, Any]]  # why the tier, in plain values
    decision: NotRequired[Decided | None]  # a person's, of this question


def resolve_options(context: object, settings: Settings, *, subject: object = None) -> Options:
    """The options of a run. ``subject``: that of the input, which wins over the context's.

    Inside another graph the context is the parent's and may be anything: only these keys of a mapping count.

    Raises:
        InputError: one of the keys has an unusable value.
    """
    options: dict[str, Any] = {
        "namespace": settings.namespace,
        "learn": settings.learn,
        "min_similarity": settings.retrieval.min_similarity,
        "exclude_same_question": settings.retrieval.exclude_same_question,
        "subject": None,
        "pieces": False,
        "explain": False,
        "note": True,
        "tier": settings.budget.tier,
        "review": settings.review.overrides,
    }
    manual = settings.retrieval.min_similarity > -1 or (isinstance(context, Mapping) and "min_similarity" in context)
    if isinstance(context, Mapping):
        options |= {key: context[key] for key in options if key in context}
    similarity = options["min_similarity"]
    number = isinstance(similarity, int | float) and not isinstance(similarity, bool)
    if not (number and -1 <= similarity <= 1):
        raise InputError(f"context 'min_similarity' is a cosine from -1 to 1; got {similarity!r:.80}")
    for key in ("learn", "exclude_same_question", "pieces", "explain", "note"):
        if not isinstance(options[key], bool):
            raise InputError(f"context {key!r} is true or false; got {options[key]!r:.80}")
    if options["tier"] not in get_args(Wanted):
        raise InputError(f"context 'tier' is one of {', '.join(get_args(Wanted))}; got {options['tier']!r:.80}")
    if options["review"] not in REVIEWS:
        raise InputError(f"context 'review' is one of {', '.join(REVIEWS)}; got {options['review']!r:.80}")
    if not isinstance(options["namespace"], str):
        raise InputError(f"context 'namespace' is a name; got {options['namespace']!r:.80}")
    if subject is not None:
        options["subject"] = subject
    namespace = check_namespace(options["namespace"])
    if namespace in settings.shared_namespaces:
        raise InputError(f"namespace {namespace!r} is shared here, so it is only read: name one of your own")
    return Options(
        namespace=namespace,
        learn=options["learn"],
        min_similarity=float(similarity),
        exclude_same_question=options["exclude_same_question"],
        subject=check_subject(options["subject"]),
        pieces=options["pieces"],
        explain=options["explain"],
        note=options["note"],
        tier=options["tier"],
        review=options["review"],
        manual_threshold=manual,
    )
