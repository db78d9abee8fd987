"""The verbs as tools of an MCP server, for agents of others: over standard input and output, or HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import BaseModel, Field

from elm_agent import __version__
from elm_agent.api.access import Holder
from elm_agent.api.guard import LARGEST_BODY, App, Guard, holder_of
from elm_agent.api.serving import Door
from elm_agent.api.shapes import (
    MOST_FOUND,
    MOST_LISTED,
    Answered,
    Explain,
    Found,
    Learn,
    Lineage,
    Question,
    RightAnswer,
    Similarity,
    Subject,
    Tier,
    Verdict,
)
from elm_agent.api.verbs import MOST_ASKED, Verbs
from elm_agent.errors import ElmError
from elm_agent.memory.feedback import FeedbackReport
from elm_agent.records import JobRecord, JobState, MemoryRecord, MemoryState
from elm_agent.runtime import Runtime

logger = logging.getLogger(__name__)
Made = TypeVar("Made")

INSTRUCTIONS = (
    "A local language model that learns from its own work. `ask` answers a question with the help of the most "
    "similar memory and learns from it later; `recall` shows which memories are near; `why` tells where one comes "
    "from; `feedback` says whether an answer was right, so that harmful memories go."
)

Namespace = Annotated[str | None, Field(max_length=100, description="Tenant; left out: one's own.")]
MemoryId = Annotated[str, Field(max_length=100, description="Id of the memory (mem_...).")]


class FoundList(BaseModel):
    """Memories near a question, most similar first."""

    found: list[Found]


class FeedbackNoted(BaseModel):
    """What counts now, and what came of it."""

    report: FeedbackReport


class MemoryList(BaseModel):
    """A page of memories."""

    memories: list[MemoryRecord]


class JobList(BaseModel):
    """Learning jobs, newest first."""

    jobs: list[JobRecord]


def make_server(runtime: Runtime, *, most_asked: int = MOST_ASKED) -> MCPServer[Any]:
    """The server on an open runtime. Over standard input and output it knows the settings' namespace alone."""
    server: MCPServer[Any] = MCPServer(
        "elm_agent", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING", subscriptions=False
    )
    tools = _Tools(Verbs(runtime, most_asked=most_asked))
    for tool in (tools.ask, tools.recall, tools.why, tools.feedback, tools.memories, tools.jobs):
        server.add_tool(tool)
    return server


def make_mcp_app(runtime: Runtime, *, door: Door, most_asked: int = MOST_ASKED) -> App:
    """The server over streamable HTTP at ``/mcp``, as an ASGI application. No sessions: each call has its token."""
    app = make_server(runtime, most_asked=most_asked).streamable_http_app(
        stateless_http=True,
        max_request_body_size=LARGEST_BODY,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # the guard's work
    )
    return Guard(app, door.access, hosts=door.hosts)


class _Tools:
    """Each method is a tool; its signature and first words are what an agent is told."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs

    async def ask(
        self,
        ctx: Context[Any, Any],
        question: Question,
        namespace: Namespace = None,
        subject: Subject = None,
        learn: Learn = None,
        min_similarity: Similarity = None,
        explain: Explain = False,
        tier: Tier = None,
    ) -> Answered:
        """Answer a question, with the help of the nearest memory where there is one; queue what it teaches."""
        mine = self._mine(ctx, namespace)
        options: dict[str, Any] = {"min_similarity": min_similarity, "explain": explain, "tier": tier}
        return await _said(self._verbs.ask(mine, question, subject=subject, learn=learn, **options))

    async def feedback(
        self,
        ctx: Context[Any, Any],
        use_id: Annotated[str, Field(max_length=100, description="Of the answer, as `ask` returned it (use_...).")],
        verdict: Verdict,
        answer: RightAnswer = None,
        namespace: Namespace = None,
    ) -> FeedbackNoted:
        """Say whether an answer was right. The last word counts; what was wrong is learnt again."""
        mine = self._mine(ctx, namespace)
        return FeedbackNoted(report=await _looked(lambda: self._verbs.feedback(mine, use_id, verdict, answer)))

    async def recall(
        self,
        ctx: Context[Any, Any],
        question: Question,
        namespace: Namespace = None,
        limit: Annotated[int, Field(ge=1, le=MOST_FOUND)] = 5,
        min_similarity: Similarity = None,
    ) -> FoundList:
        """The memories nearest to a question, most similar first. Answers nothing and notes no use."""
        mine = self._mine(ctx, namespace)
        find = lambda: self._verbs.recall(mine, question, limit=limit, min_similarity=min_similarity)  # noqa: E731
        return FoundList(found=await _looked(find))

    async def why(
        self,
        ctx: Context[Any, Any],
        memory_id: MemoryId,
        namespace: Namespace = None,
        uses: Annotated[int, Field(ge=1, le=MOST_LISTED)] = 20,
        rollouts: bool = False,
    ) -> Lineage:
        """Where a memory comes from and what it did: episode, votes, curve, uses, history."""
        mine = self._mine(ctx, namespace)
        return await _looked(lambda: self._verbs.why(mine, memory_id, uses=uses, rollouts=rollouts))

    async def memories(
        self,
        ctx: Context[Any, Any],
        namespace: Namespace = None,
        state: MemoryState | None = None,
        order: Annotated[str, Field(max_length=40, description="'-' in front: highest first.")] = "-created_at",
        limit: Annotated[int, Field(ge=1, le=MOST_LISTED)] = 20,
        offset: Annotated[int, Field(ge=0, le=10**9)] = 0,
    ) -> MemoryList:
        """A page of the memories of the namespace."""
        mine = self._mine(ctx, namespace)
        page = {"state": state, "order": order, "limit": limit, "offset": offset}
        return MemoryList(memories=await _looked(lambda: self._verbs.memories(mine, **page)))  # type: ignore[arg-type]

    async def jobs(
        self,
        ctx: Context[Any, Any],
        namespace: Namespace = None,
        job_id: Annotated[str | None, Field(max_length=100, description="One job (job_...); left out: all.")] = None,
        state: JobState | None = None,
        limit: Annotated[int, Field(ge=1, le=MOST_LISTED)] = 20,
    ) -> JobList:
        """The newest learning jobs of the namespace, or one of them: state, attempts, progress and reason."""
        mine = self._mine(ctx, namespace)
        if job_id is not None:
            return JobList(jobs=[await _looked(lambda: self._verbs.job(mine, job_id))])
        return JobList(jobs=await _looked(lambda: self._verbs.jobs(mine, state=state, limit=limit)))

    def _mine(self, ctx: Context[Any, Any], namespace: str | None) -> str:
        request = ctx.request_context.request
        own = self._verbs.namespace
        holder = Holder((own,)) if request is None else holder_of(request.scope)
        if namespace is None:
            namespace = own if holder.may(own) or holder.namespaces is None else holder.namespaces[0]
        try:
            return holder.check(namespace)
        except ElmError as error:
            raise _told(error) from None


async def _looked(look: Callable[[], Made]) -> Made:
    return await _said(asyncio.to_thread(look))


async def _said(work: Awaitable[Made]) -> Made:
    """What was foreseen is told to the agent in one sentence; the rest is a crash, which the server logs."""
    try:
        return await work
    except ElmError as error:
        raise _told(error) from None


def _told(error: ElmError) -> ToolError:
    return ToolError(f"{type(error).__name__}: {' '.join(str(error).split())}")
