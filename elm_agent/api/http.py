"""The verbs as an HTTP API: routes and what they take. How they answer is ``verbs``, who may ask is ``guard``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer

from elm_agent import __version__
from elm_agent.api.access import Access
from elm_agent.api.failures import failure, http_failure, status_of, told
from elm_agent.api.guard import LARGEST_BODY, App, Guard, holder_of
from elm_agent.api.shapes import (
    FAILURES,
    MOST_LISTED,
    Answered,
    AskBody,
    FeedbackBody,
    Found,
    Lineage,
    NamespaceShown,
    RecallBody,
)
from elm_agent.api.streaming import Gone, event_stream, while_there
from elm_agent.api.verbs import MOST_ASKED, Verbs
from elm_agent.errors import ElmError
from elm_agent.memory.feedback import FeedbackReport
from elm_agent.records import JobRecord, JobState, MemoryRecord, MemoryState
from elm_agent.runtime import Runtime

_ID = r"^[A-Za-z0-9_-]+$"
MemoryId = Annotated[str, Path(max_length=100, pattern=_ID, description="Id of the memory (mem_...).")]
JobId = Annotated[str, Path(max_length=100, pattern=_ID, description="Id of the job (job_...).")]
UseId = Annotated[str, Path(max_length=100, pattern=_ID, description="Id of the use (use_...).")]
Limit = Annotated[int, Query(ge=1, le=MOST_LISTED, description="At most so many.")]
Offset = Annotated[int, Query(ge=0, le=10**9, description="Skip so many.")]


def make_app(
    runtime: Runtime,
    *,
    access: Access | None = None,
    hosts: Collection[str] | None = None,
    most_asked: int = MOST_ASKED,
) -> App:
    """The API on an open runtime, as an ASGI application.

    Args:
        access: tokens and their namespaces; None asks for no token.
        hosts: names by which it may be called; None: any.
        most_asked: questions answered at once.
    """
    access = access or Access()
    app = FastAPI(
        title="elm_agent",
        version=__version__,
        description="An agent on a local language model that learns from its own work.",
        docs_url=None,  # its page would come from another's server
        redoc_url=None,
        max_body_size=LARGEST_BODY,
        telemetry={"auto_configure": False},  # nothing leaves because of a variable
    )
    app.state.verbs = Verbs(runtime, most_asked=most_asked)
    _say_failures(app)
    app.add_api_route("/health", _health, methods=["GET"], tags=["server"])
    locks = [] if access.open else [Depends(HTTPBearer(auto_error=False))]
    app.include_router(_router, prefix="/v1", dependencies=locks)
    return Guard(app, access, hosts=hosts, largest_body=LARGEST_BODY)


def _namespace(
    request: Request,
    namespace: Annotated[
        str,
        Path(max_length=100, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", description="Namespace (tenant) of the bank."),
    ],
) -> str:
    return holder_of(request.scope).check(namespace)


def _verbs(request: Request) -> Verbs:
    verbs: Verbs = request.app.state.verbs
    return verbs


Namespace = Annotated[str, Depends(_namespace)]
TheVerbs = Annotated[Verbs, Depends(_verbs)]
_router = APIRouter(responses=FAILURES)


async def _health() -> dict[str, str]:
    """That the server answers; says nothing else, and asks for no token."""
    return {"status": "ok"}


# --- questions ----------------------------------------------------------------------------------------------


@_router.post("/{namespace}/ask", tags=["questions"])
async def ask(request: Request, verbs: TheVerbs, namespace: Namespace, body: AskBody) -> Answered:
    """Answer a question, with the help of the nearest memory where there is one; queue what it teaches.

    The namespace comes into being with its first question. A client that goes away frees its rows.
    """
    return await while_there(request, verbs.ask(namespace, **body.model_dump()))


@_router.post(
    "/{namespace}/ask/stream",
    tags=["questions"],
    response_class=StreamingResponse,
    responses={200: {"description": "server-sent events", "content": {"text/event-stream": {}}}},
)
async def ask_stream(verbs: TheVerbs, namespace: Namespace, body: AskBody) -> StreamingResponse:
    """As `ask`, with server-sent events as they happen; the data of each is one JSON object.

    `elm.retrieved`, `elm.piece` (text of one of both candidates, by `source`), `elm.candidate`, `elm.routed`,
    `elm.consolidation.queued`, and last `answer`, what `ask` returns, or `error`.
    """
    return await event_stream(verbs.asking(namespace, **body.model_dump()))


@_router.post("/{namespace}/recall", tags=["questions"])
def recall(verbs: TheVerbs, namespace: Namespace, body: RecallBody) -> list[Found]:
    """The memories nearest to a question, most similar first. Answers nothing and notes no use."""
    return verbs.recall(namespace, body.question, limit=body.limit, min_similarity=body.min_similarity)


@_router.post("/{namespace}/uses/{use_id}/feedback", tags=["questions"])
def feedback(verbs: TheVerbs, namespace: Namespace, use_id: UseId, body: FeedbackBody) -> FeedbackReport:
    """Say whether an answer was right; its `use_id` names it.

    The last word counts. The question of a wrong answer is learnt again.
    """
    return verbs.feedback(namespace, use_id, body.verdict, body.answer)


# --- memories -----------------------------------------------------------------------------------------------


@_router.get("/namespaces", tags=["memories"])
def namespaces(request: Request, verbs: TheVerbs) -> list[NamespaceShown]:
    """The namespaces that the token may see."""
    return verbs.namespaces(holder_of(request.scope))


@_router.get("/{namespace}/memories", tags=["memories"])
def memories(
    verbs: TheVerbs,
    namespace: Namespace,
    state: MemoryState | None = None,
    order: Annotated[str, Query(max_length=40, description="A field; '-' in front: highest first.")] = "-created_at",
    limit: Limit = 50,
    offset: Offset = 0,
) -> list[MemoryRecord]:
    """A page of the memories of the namespace."""
    return verbs.memories(namespace, state=state, order=order, limit=limit, offset=offset)


@_router.get("/{namespace}/memories/{memory_id}", tags=["memories"])
def memory(verbs: TheVerbs, namespace: Namespace, memory_id: MemoryId) -> MemoryRecord:
    """One memory."""
    return verbs.memory(namespace, memory_id)


@_router.get("/{namespace}/memories/{memory_id}/why", tags=["memories"])
def why(
    verbs: TheVerbs,
    namespace: Namespace,
    memory_id: MemoryId,
    uses: Limit = 20,
    rollouts: Annotated[bool, Query(description="Also every rollout's text.")] = False,
) -> Lineage:
    """Where a memory comes from and what it did: episode, votes, curve, uses, history."""
    return verbs.why(namespace, memory_id, uses=uses, rollouts=rollouts)


# --- jobs ---------------------------------------------------------------------------------------------------


@_router.get("/{namespace}/jobs", tags=["jobs"])
def jobs(verbs: TheVerbs, namespace: Namespace, state: JobState | None = None, limit: Limit = 50) -> list[JobRecord]:
    """The newest learning jobs of the namespace."""
    return verbs.jobs(namespace, state=state, limit=limit)


@_router.get("/{namespace}/jobs/{job_id}", tags=["jobs"])
def job(verbs: TheVerbs, namespace: Namespace, job_id: JobId) -> JobRecord:
    """One job: state, attempts, progress and reason."""
    return verbs.job(namespace, job_id)


@_router.post("/{namespace}/jobs/{job_id}/cancel", tags=["jobs"])
def cancel_job(verbs: TheVerbs, namespace: Namespace, job_id: JobId) -> JobRecord:
    """Cancel a job; a running one stops after its current step."""
    return verbs.cancel_job(namespace, job_id)


@_router.post("/{namespace}/jobs/{job_id}/retry", tags=["jobs"])
def retry_job(verbs: TheVerbs, namespace: Namespace, job_id: JobId) -> JobRecord:
    """Queue a failed or cancelled job again."""
    return verbs.retry_job(namespace, job_id)


# --- failures -----------------------------------------------------------------------------------------------


def _say_failures(app: FastAPI) -> None:
    @app.exception_handler(ElmError)
    @app.exception_handler(Exception)
    async def _failed(_: Request, error: Exception) -> JSONResponse:
        status = status_of(error)
        return JSONResponse(told(error), status, headers={"retry-after": "1"} if status == 503 else None)

    @app.exception_handler(RequestValidationError)
    async def _unusable(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse(failure("InputError", _sentence(error)), 422)

    async def _refused(_: Request, error: Exception) -> JSONResponse:
        status, detail = getattr(error, "status_code", 500), getattr(error, "detail", "")
        return JSONResponse(http_failure(status, str(detail)), status, getattr(error, "headers", None))

    for status in (400, 404, 405, 413):  # those that the framework itself raises
        app.add_exception_handler(status, _refused)

    @app.exception_handler(Gone)
    async def _gone(_: Request, __: Gone) -> Response:
        return Response(status_code=499)


def _sentence(error: RequestValidationError) -> str:
    """What was wrong first, without what was sent."""
    first, *more = error.errors()
    where: list[Any] = list(first["loc"])
    text = f"{'.'.join(str(part) for part in where)[:200]}: {first['msg'][:300]}"
    return text + (f" (and {len(more)} more)" if more else "")
