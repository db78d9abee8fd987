"""What can be asked of an agent from outside: ask, recall, why, feedback, memories, jobs. Knows no protocol.

Whoever calls has checked that the namespace may be seen. Reading methods block and belong on a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, cast

from elm_agent.api.access import Holder, no_namespace
from elm_agent.api.failures import Busy
from elm_agent.api.shapes import Answered, Found, Lineage, NamespaceShown
from elm_agent.errors import NotFound
from elm_agent.integrations.langgraph import RunContext, build_graph
from elm_agent.memory.answering import check_question
from elm_agent.memory.feedback import FeedbackReport
from elm_agent.memory.recall import nearest_memories
from elm_agent.memory.tiers import Wanted
from elm_agent.records import Feedback, JobRecord, JobState, MemoryRecord, MemoryState
from elm_agent.runtime import Runtime

Event = tuple[str, dict[str, Any]]
WAITING: Event = ("waiting", {})
SILENT_SECONDS = 15.0  # after which a proxy may take a connection for dead
MOST_ASKED = 64  # questions answered at once, as many as the model's batch has rows by default


class Verbs:
    """The verbs on one open runtime. Close the runtime after them.

    ``most_asked``: questions answered at once; one more is refused with ``Busy``.
    """

    def __init__(self, runtime: Runtime, *, most_asked: int = MOST_ASKED) -> None:
        self._runtime = runtime
        self._bank = runtime.bank
        self._graph = build_graph(runtime)
        self._most_asked = most_asked
        self._asked = 0
        self._runs: set[asyncio.Task[Any]] = set()  # the loop itself holds none of its tasks

    @property
    def namespace(self) -> str:
        """That of the settings."""
        return self._runtime.settings.namespace

    # --- answering ---------------------------------------------------------------------------------------

    async def ask(
        self,
        namespace: str,
        question: str,
        *,
        subject: str | None = None,
        learn: bool | None = None,
        min_similarity: float | None = None,
        explain: bool = False,
        tier: Wanted | None = None,
    ) -> Answered:
        """One answer. None is as configured. Cancelled, its rows are freed. Raises as the graph, and ``Busy``."""
        context = _context(namespace, learn=learn, min_similarity=min_similarity, explain=explain, tier=tier)
        async with self._turn():
            run = self._begun(self._graph.ainvoke({"question": question, "subject": subject}, context=context))
            try:
                return answered(await asyncio.shield(run))
            finally:
                run.cancel()

    async def asking(
        self,
        namespace: str,
        question: str,
        *,
        subject: str | None = None,
        learn: bool | None = None,
        min_similarity: float | None = None,
        explain: bool = False,
        tier: Wanted | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Events as they happen, pieces of text among them; the last is ``("answer", ...)``.

        ``WAITING`` comes after every ``SILENT_SECONDS`` in which nothing happened.
        Closed, it frees its rows. Raises as ``ask``.
        """
        options = {"learn": learn, "min_similarity": min_similarity, "explain": explain, "tier": tier}
        context = _context(namespace, **options, pieces=True)
        events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        async with self._turn():
            run = self._begun(self._run({"question": question, "subject": subject}, context, events))
            try:
                while True:
                    try:
                        event = await asyncio.wait_for(events.get(), SILENT_SECONDS)
                    except TimeoutError:
                        event = WAITING
                    if isinstance(event, BaseException):
                        raise event
                    yield event
                    if event[0] == "answer":
                        return
            finally:
                run.cancel()

    def _begun(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that whoever asked can cancel once. Cancelled again and again, as servers do it, the graph would
        leave its rows behind half-way through its own clearing up."""
        run = asyncio.create_task(work)
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        return run

    async def _run(self, asked: Any, context: RunContext, events: asyncio.Queue[Any]) -> None:
        """One task walks through the graph's stream from its beginning to its end, as the stream expects."""
        result: Mapping[str, Any] = {}
        try:
            parts: Any = self._graph.astream(asked, context=context, stream_mode=["custom", "values"])
            async for mode, part in parts:
                if mode == "values":
                    result = part
                else:
                    events.put_nowait((part["event"], {key: part[key] for key in part if key != "event"}))
            events.put_nowait(("answer", answered(result).model_dump(mode="json")))
        except Exception as error:  # noqa: BLE001 - raised again where the events are read
            events.put_nowait(error)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._asked >= self._most_asked:
            raise Busy(f"{self._most_asked} questions are being answered: ask again in a moment")
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1

    def feedback(self, namespace: str, use_id: str, verdict: Feedback, answer: str | None) -> FeedbackReport:
        """Note whether the answer of a use was right; see ``Runtime.feedback``. Raises as it does."""
        return self._runtime.feedback(use_id, verdict, answer=answer, namespace=namespace)

    # --- looking -----------------------------------------------------------------------------------------

    def namespaces(self, holder: Holder) -> list[NamespaceShown]:
        """Those of the bank that the holder may see."""
        return [
            NamespaceShown(name=info.name, model=info.model.name, model_id=info.model.id, revision=info.revision)
            for info in self._bank.namespaces()
            if holder.may(info.name)
        ]

    def recall(
        self, namespace: str, question: str, *, limit: int, min_similarity: float | None = None
    ) -> list[Found]:
        """The memories nearest to a question, most similar first; shared ones too. Notes no use."""
        runtime, usual = self._runtime, self._runtime.settings.retrieval
        self._known(namespace)
        found = nearest_memories(
            check_question(question),
            bank=self._bank,
            model=runtime.model,
            namespace=namespace,
            limit=limit,
            shared=runtime.shared(namespace),
            kind=usual.key,
            min_similarity=usual.min_similarity if min_similarity is None else min_similarity,
        )
        return [Found(similarity=hit.similarity, memory=memory) for hit, memory in found]

    def why(self, namespace: str, memory_id: str, *, uses: int, rollouts: bool = False) -> Lineage:
        """Where a memory comes from and what it did for ``namespace``, its newest uses first. Raises ``NotFound``."""
        memory = self.memory(namespace, memory_id)
        episode = self._bank.episode(memory.namespace, memory_id)
        return Lineage(
            memory=memory,
            episode=episode if rollouts else replace(episode, rollouts=()),
            uses=self._bank.uses(namespace, memory_id, limit=uses),
            events=self._bank.events(memory.namespace, memory_id),
        )

    def memory(self, namespace: str, memory_id: str) -> MemoryRecord:
        """One of the namespace, or of those it shares. Raises ``NotFound``."""
        for shared in self._runtime.shared(namespace):
            with suppress(NotFound):
                return self._bank.memory(shared, memory_id)
        return self._bank.memory(namespace, memory_id)

    def memories(
        self, namespace: str, *, state: MemoryState | None, order: str, limit: int, offset: int
    ) -> list[MemoryRecord]:
        """A page of the namespace. Raises ``NotFound``."""
        return self._bank.memories(namespace, state=state, order=order, limit=limit, offset=offset)

    def jobs(self, namespace: str, *, state: JobState | None, limit: int) -> list[JobRecord]:
        """Newest first. Raises ``NotFound``."""
        self._known(namespace)
        return self._bank.jobs.list(namespace, state=state, limit=limit)

    def job(self, namespace: str, job_id: str) -> JobRecord:
        """Raises ``NotFound``."""
        return self._bank.jobs.get(namespace, job_id)

    def cancel_job(self, namespace: str, job_id: str) -> JobRecord:
        """A queued job ends at once, a running one is asked to. Raises ``NotFound``."""
        return self._bank.jobs.cancel(namespace, job_id)

    def retry_job(self, namespace: str, job_id: str) -> JobRecord:
        """Raises ``NotFound``, or ``InputError`` for a job that is not over or succeeded."""
        job = self._bank.jobs.retry(namespace, job_id)
        self._runtime.runner.notify()
        return job

    def _known(self, namespace: str) -> None:
        try:
            self._bank.namespace(namespace)
        except NotFound:
            raise no_namespace(namespace) from None


def answered(result: Mapping[str, Any]) -> Answered:
    """The output of the graph as a shape."""
    return Answered.model_validate({name: result.get(name) for name in Answered.model_fields})


def _context(namespace: str, **options: Any) -> RunContext:
    given = {name: value for name, value in options.items() if value is not None}
    return cast(RunContext, {"namespace": namespace, **given})
