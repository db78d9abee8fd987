"""``elm-agent memories``: look at memories and change their state. Needs no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.lineage import show_lineage
from elm_agent.cli.opening import opened_bank
from elm_agent.cli.options import Shared, group, shared
from elm_agent.cli.output import short, when
from elm_agent.records import MemoryState

if TYPE_CHECKING:
    from elm_agent.records import MemoryRecord

app = group("memories", "Look at memories; pin, evict and restore them.")

ACTOR = "command line"
MemoryId = Annotated[str, typer.Argument(metavar="ID", help="Id of the memory (mem_...).")]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; kept in the history.")]


@app.command("list")
@shared
def list_(
    options: Shared,
    state: Annotated[MemoryState | None, typer.Option("--state", help="Only memories in this state.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Skip so many.")] = 0,
) -> None:
    """List the memories of the namespace, newest first."""
    out = options.output()
    with opened_bank(options) as opened:
        found = opened.bank.memories(opened.namespace, state=state, limit=limit, offset=offset)
    if out.json:
        out.document(found)
    elif not found:
        out.say(f"no memories in namespace {opened.namespace!r}")
    else:
        columns = ("id", "state", "pinned", "uses", "fixed", "broken", "vote share", "created", "question")
        out.table(columns, (_row(memory) for memory in found))


def _row(memory: MemoryRecord) -> tuple[Any, ...]:
    pinned = "yes" if memory.pinned else ""
    counts = (memory.uses, memory.fixed, memory.broken, float(memory.final_vote_share))
    return (memory.id, memory.state, pinned, *counts, when(memory.created_at), short(memory.question))


@app.command()
@shared
def show(options: Shared, memory_id: MemoryId) -> None:
    """Show one memory: state, counts, model and recipe."""
    out = options.output()
    with opened_bank(options) as opened:
        memory = opened.bank.memory(opened.namespace, memory_id)
    _tell(options, memory) if not out.json else out.document(memory)


@app.command()
@shared
def why(
    options: Shared,
    memory_id: MemoryId,
    rollouts: Annotated[bool, typer.Option("--rollouts", help="Also every rollout's text.")] = False,
    uses: Annotated[int, typer.Option("--uses", min=1, help="At most so many uses.")] = 20,
) -> None:
    """Show where a memory comes from and what it did: question, votes, curve, uses, history, model, recipe."""
    out = options.output()
    with opened_bank(options) as opened:
        bank, namespace = opened.bank, opened.namespace
        memory = bank.memory(namespace, memory_id)
        episode = bank.episode(namespace, memory_id)
        used = bank.uses(namespace, memory_id, limit=None if out.json else uses)
        events = bank.events(namespace, memory_id)
    if out.json:
        out.document({"memory": memory, "episode": episode, "uses": used, "events": events})
    else:
        show_lineage(out, memory=memory, episode=episode, uses=used, events=events, rollouts=rollouts)


@app.command()
@shared
def pin(options: Shared, memory_id: MemoryId) -> None:
    """Protect a memory from eviction."""
    with opened_bank(options) as opened:
        memory = opened.bank.pin(opened.namespace, memory_id, True, actor=ACTOR)
    _changed(options, memory, "pinned")


@app.command()
@shared
def unpin(options: Shared, memory_id: MemoryId) -> None:
    """Take the protection away."""
    with opened_bank(options) as opened:
        memory = opened.bank.pin(opened.namespace, memory_id, False, actor=ACTOR)
    _changed(options, memory, "unpinned")


@app.command()
@shared
def evict(options: Shared, memory_id: MemoryId, reason: Reason = None) -> None:
    """Retire a memory: it is not retrieved any more, and can be restored."""
    _transition(options, memory_id, MemoryState.RETIRED, reason, "evicted")


@app.command()
@shared
def restore(options: Shared, memory_id: MemoryId, reason: Reason = None) -> None:
    """Make a candidate, quarantined or retired memory active again."""
    _transition(options, memory_id, MemoryState.ACTIVE, reason, "restored")


def _transition(options: Shared, memory_id: str, to: MemoryState, reason: str | None, verb: str) -> None:
    with opened_bank(options) as opened:
        memory = opened.bank.transition(opened.namespace, memory_id, to, actor=ACTOR, reason=reason)
    _changed(options, memory, verb)


def _changed(options: Shared, memory: MemoryRecord, verb: str) -> None:
    out = options.output()
    if out.json:
        out.document(memory)
    else:
        out.say(f"{verb} {memory.id}: {memory.state}, {short(memory.question)}")


def _tell(options: Shared, memory: MemoryRecord) -> None:
    recipe = memory.recipe
    facts = {
        "id": memory.id,
        "state": memory.state + (" (pinned)" if memory.pinned else ""),
        "reason": memory.reason,
        "question": memory.question,
        "task": memory.task,
        "uses": f"{memory.uses}, fixed {memory.fixed}, broken {memory.broken}",
        "vote share": f"{memory.final_vote_share:.3f} at the last step",
        "prompt": f"{memory.virtual_tokens} x {memory.width}, {memory.tensor_digest}",
        "model": f"{memory.model.name} ({memory.model.id})",
        "recipe": f"{recipe.parameterisation}, {recipe.objective}, {recipe.steps} x {recipe.rollouts} rollouts",
        "made by": f"elm_agent {memory.library_version}, job {memory.job_id}",
        "created": when(memory.created_at),
        "changed": when(memory.updated_at),
    }
    for name, value in facts.items():
        options.output().say(f"{name:<12}{'-' if value is None else value}")
