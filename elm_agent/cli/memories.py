"""``elm-agent memories``: look at memories and change their state. Needs no model."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.confirm import agreed
from elm_agent.cli.lineage import show_lineage, told_worth
from elm_agent.cli.maintain import show_left
from elm_agent.cli.opening import OpenBank, opened_bank
from elm_agent.cli.options import TIMES, Shared, group, in_zone, shared
from elm_agent.cli.output import Output, short, when
from elm_agent.errors import InputError
from elm_agent.records import MemoryState, utcnow

if TYPE_CHECKING:
    from elm_agent.records import MemoryRecord
    from elm_agent.storage.posterior import Posterior

app = group("memories", "Look at memories; review, pin, expire, evict, restore and purge them.")

ACTOR = "command line"
MemoryId = Annotated[str, typer.Argument(metavar="ID", help="Id of the memory (mem_...).")]
MemoryIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of memories (mem_...).")]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; kept in the history.")]


class Review(StrEnum):
    """What a person said of a memory."""

    KEEP = "keep"
    QUARANTINE = "quarantine"
    RESTORE = "restore"


@app.command("list")
@shared
def list_(
    options: Shared,
    state: Annotated[MemoryState | None, typer.Option("--state", help="Only memories in this state.")] = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where", metavar="EXPR", help="Only those it is true for, such as 'uses > 9 and utility < 0'."
        ),
    ] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", metavar="NAME", help="Only those of this subject's experience.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Skip so many.")] = 0,
) -> None:
    """List the memories of the namespace, newest first; of purged ones what is left: id, time and who did it."""
    out = options.output()
    if state is MemoryState.PURGED:
        if where is not None or subject is not None:
            raise InputError("of a purged memory only id, time and actor are left: leave --where and --subject out")
        _list_purged(options, slice(offset, None if limit is None else offset + limit))
        return
    from elm_agent.memory.listing import matching

    with opened_bank(options) as opened:
        if where is None and subject is None:
            found = opened.bank.memories(opened.namespace, state=state, limit=limit, offset=offset)
        else:
            of = {"where": where, "subject": subject, "state": state, "limit": limit, "offset": offset}
            found = matching(opened.bank, opened.namespace, **of)  # type: ignore[arg-type]
    if out.json:
        out.document(found)
    elif not found:
        out.say(f"no memories in namespace {opened.namespace!r}")
    else:
        _list(out, found)


def _list_purged(options: Shared, wanted: slice) -> None:
    out = options.output()
    with opened_bank(options) as opened:
        found = opened.bank.tombstones(opened.namespace)[wanted]
    if out.json:
        out.document(found)
    elif not found:
        out.say(f"no purged memories in namespace {opened.namespace!r}")
    else:
        out.table(("id", "purged", "by"), ((stone.memory_id, when(stone.purged_at), stone.actor) for stone in found))


def _list(out: Output, found: list[MemoryRecord]) -> None:
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
        worth = _worth(options, opened, memory_id)
    _tell(options, memory, worth) if not out.json else out.document(memory)


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
        worth = _worth(options, opened, memory_id)
    if out.json:
        out.document({"memory": memory, "episode": episode, "uses": used, "events": events, "worth": worth.plain()})
    else:
        show_lineage(out, memory=memory, episode=episode, uses=used, events=events, worth=worth, rollouts=rollouts)


@app.command()
@shared
def pin(options: Shared, memory_id: MemoryId) -> None:
    """Protect a memory from eviction."""
    with opened_bank(options) as opened:
        memory = opened.bank.pin(opened.namespace, memory_id, True, actor=ACTOR)
    _changed(options, [memory], "pinned")


@app.command()
@shared
def unpin(options: Shared, memory_id: MemoryId) -> None:
    """Take the protection away."""
    with opened_bank(options) as opened:
        memory = opened.bank.pin(opened.namespace, memory_id, False, actor=ACTOR)
    _changed(options, [memory], "unpinned")


@app.command()
@shared
def evict(options: Shared, memory_ids: MemoryIds, reason: Reason = None) -> None:
    """Retire memories: they are not retrieved any more, and can be restored."""
    _transition(options, memory_ids, MemoryState.RETIRED, reason, "evicted")


@app.command()
@shared
def restore(options: Shared, memory_ids: MemoryIds, reason: Reason = None) -> None:
    """Make candidate, quarantined or retired memories active again."""
    _transition(options, memory_ids, MemoryState.ACTIVE, reason, "restored")


@app.command()
@shared
def expire(
    options: Shared,
    memory_id: MemoryId,
    at: Annotated[
        datetime | None, typer.Option("--at", formats=TIMES, help="When; local time unless it names its zone.")
    ] = None,
    never: Annotated[bool, typer.Option("--never", help="It stays valid.")] = False,
) -> None:
    """Set until when a memory may serve; by default until now. `maintain` retires what has expired."""
    if never and at is not None:
        raise InputError("--at and --never contradict each other: leave one out")
    until = None if never else in_zone(at) or utcnow()
    with opened_bank(options) as opened:
        memory = opened.bank.set_validity(opened.namespace, memory_id, until, actor=ACTOR)
    _changed(options, [memory], "valid for ever:" if until is None else f"valid until {when(until)} UTC:")


@app.command()
@shared
def review(
    options: Shared,
    memory_id: MemoryId,
    verdict: Annotated[
        Review, typer.Option("--verdict", help="keep: it is fine; quarantine: it must not serve; restore: it may.")
    ],
    note: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="Why; kept in the history.")] = None,
) -> None:
    """Note in the history that a person looked at a memory, and take it out of service or bring it back.

    What uses told of it before counts no more for a quarantine by utility.quarantine_harm.
    """
    with opened_bank(options) as opened:
        bank, where = opened.bank, (opened.namespace, memory_id)
        memory = bank.review(*where, actor=ACTOR, verdict=verdict.value, note=note)
        if verdict is Review.QUARANTINE:
            memory = bank.transition(*where, MemoryState.QUARANTINED, actor=ACTOR, reason=note or "by a review")
        if verdict is Review.RESTORE:
            memory = bank.transition(*where, MemoryState.ACTIVE, actor=ACTOR, reason=note or "by a review")
    _changed(options, [memory], "reviewed")


@app.command()
@shared
def purge(
    options: Shared,
    memory_ids: MemoryIds,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without the question.")] = False,
) -> None:
    """Remove memories for good: rows, episodes, uses, keys, tensors, caches. Only a tombstone is left.

    First it shows what would go; then it asks, or does it with --yes.
    """
    out = options.output()
    with opened_bank(options, owns_index=True) as opened:
        bank, namespace = opened.bank, opened.namespace
        doomed = [bank.memory(namespace, memory_id) for memory_id in memory_ids]
        if not (yes or out.json):
            _list(out, doomed)
        report = None
        if agreed(out, f"Purge {len(doomed)} memories for good?", yes=yes):
            report = bank.purge(namespace, memory_ids, actor=ACTOR, reason=reason)
    if out.json:
        out.document(report if report is not None else {"dry_run": True, "memory_ids": memory_ids})
    elif report is not None:
        out.say(f"purged {len(report.memory_ids)} memories with {report.uses} uses and {report.jobs} jobs")
        show_left(out, report)


def _transition(options: Shared, memory_ids: list[str], to: MemoryState, reason: str | None, verb: str) -> None:
    with opened_bank(options) as opened:
        changed = [
            opened.bank.transition(opened.namespace, memory_id, to, actor=ACTOR, reason=reason)
            for memory_id in memory_ids
        ]
    _changed(options, changed, verb)


def _worth(options: Shared, opened: OpenBank, memory_id: str) -> Posterior:
    from elm_agent.runtime import utility_weights

    one = opened.namespace, memory_id
    return opened.bank.posteriors(opened.namespace, [one], utility_weights(options.load()))[one]


def _changed(options: Shared, changed: list[MemoryRecord], verb: str) -> None:
    """As JSON one memory is an object, several are a list."""
    out = options.output()
    if out.json:
        out.document(changed[0] if len(changed) == 1 else changed)
    for memory in changed:
        out.say(f"{verb} {memory.id}: {memory.state}, {short(memory.question)}")


def _tell(options: Shared, memory: MemoryRecord, worth: Posterior) -> None:
    recipe = memory.recipe
    facts = {
        "id": memory.id,
        "state": memory.state + (" (pinned)" if memory.pinned else ""),
        "reason": memory.reason,
        "question": memory.question,
        "task": memory.task,
        "uses": f"{memory.uses}, fixed {memory.fixed}, broken {memory.broken}",
        "utility": told_worth(worth),
        "vote share": f"{memory.final_vote_share:.3f} at the last step",
        "tensor": f"{recipe.parameterisation}, {memory.virtual_tokens} x {memory.width}, {memory.tensor_digest}",
        "model": f"{memory.model.name} ({memory.model.id})",
        "recipe": f"{recipe.parameterisation}, {recipe.objective}, {recipe.steps} x {recipe.rollouts} rollouts, "
        f"trainer {recipe.trainer}" + "".join(f", approximation {name}" for name in recipe.approximations),
        "from": memory.origin if memory.subject is None else f"{memory.origin}, subject {memory.subject}",
        "valid until": None if memory.valid_until is None else f"{when(memory.valid_until)} UTC",
        "made by": f"elm_agent {memory.library_version}, job {memory.job_id}",
        "created": when(memory.created_at),
        "changed": when(memory.updated_at),
    }
    for name, value in facts.items():
        options.output().say(f"{name:<12}{'-' if value is None else value}")
