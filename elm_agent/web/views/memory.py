"""One memory: where it came from, what it did, its history; and the buttons that change it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from elm_agent.errors import InputError, NotFound
from elm_agent.records import Episode, EventKind, EventRecord, MemoryRecord, MemoryState
from elm_agent.storage.superseding import lineage_of
from elm_agent.web import charts, forms
from elm_agent.web.desk import ACTOR, Desk, url

USES = 50
EVENTS = 100
ROLLOUTS = 32

TARGETS = {
    "restore": MemoryState.ACTIVE,
    "evict": MemoryState.RETIRED,
    "quarantine": MemoryState.QUARANTINED,
}
PINS = {"pin": True, "unpin": False}


@dataclass(frozen=True, slots=True)
class Undo:
    """The last change, and the action that takes it back; None where nothing does."""

    event: EventRecord
    action: str | None


def show(desk: Desk, request: Request) -> Response:
    info, memory_id = desk.namespace(request), forms.identifier(request, "memory_id")
    bank = desk.bank
    memory = bank.memory(info.name, memory_id)
    episode = bank.episode(info.name, memory_id)
    events = bank.events(info.name, memory_id, limit=EVENTS)
    last = max((rollout.step for rollout in episode.rollouts), default=0)
    rollouts = [rollout for rollout in episode.rollouts if rollout.step == last]
    return desk.page(
        request,
        "memory.html",
        namespace=info,
        memory=memory,
        episode=episode,
        votes=Counter(rollout.answer for rollout in rollouts).most_common(8),
        voters=len(rollouts),
        rollouts=rollouts[:ROLLOUTS],
        failed=sum(rollout.failure is not None for rollout in episode.rollouts),
        curve=_curve(episode),
        uses=bank.uses(info.name, memory_id, USES, home=info.name),
        worth=bank.posteriors(info.name, [(info.name, memory_id)])[info.name, memory_id],
        events=events[::-1],
        lineage=lineage_of(events),
        undo=undo_of(memory, events),
        safe_until=_safe_until(memory, desk.undo_days),
        actions=actions_of(memory),
        recipe=asdict(memory.recipe),
        vectors=desk.open_model is not None,
    )


def change(desk: Desk, request: Request, fields: dict[str, str]) -> Response:
    """Do what a button says, unless the memory changed since the page with the button was made."""
    info, memory_id = desk.namespace(request), forms.identifier(request, "memory_id")
    desk.walls.check_change(info)
    action = str(request.path_params["action"])
    expected = forms.number(fields, "revision")
    if expected is None:
        raise InputError("the form does not say which revision of the memory it is about: nothing was done")
    if action in PINS:
        desk.bank.pin(info.name, memory_id, PINS[action], actor=ACTOR, expected=expected)
    elif action in TARGETS:
        reason = forms.text(fields, "reason")
        desk.bank.transition(info.name, memory_id, TARGETS[action], actor=ACTOR, reason=reason, expected=expected)
    else:
        raise NotFound(f"there is nothing called {action[:40]!r} to do with a memory")
    return RedirectResponse(url("n", info.name, "memories", memory_id) + "#change", status_code=303)


def actions_of(memory: MemoryRecord) -> list[str]:
    """What can be done with it as it is; first what does no harm, for Enter in a field presses the first button."""
    possible = ["unpin" if memory.pinned else "pin"]
    possible += [] if memory.pinned or memory.state is MemoryState.RETIRED else ["evict"]
    possible += [] if memory.state is MemoryState.QUARANTINED else ["quarantine"]
    return possible + ([] if memory.state is MemoryState.ACTIVE else ["restore"])


def undo_of(memory: MemoryRecord, events: Sequence[EventRecord]) -> Undo | None:
    """The change that made the memory what it is, and how to take it back. ``events``: its own, oldest first.

    A candidate that was something else once is none any more: nothing leads back there.
    """
    last = next((event for event in reversed(events) if event.revision == memory.revision), None)
    if last is None:
        return None
    if last.kind in (EventKind.PINNED, EventKind.UNPINNED):
        return Undo(last, "unpin" if last.kind is EventKind.PINNED else "pin")
    back = {state.value: action for action, state in TARGETS.items()}.get(str(last.detail.get("from")))
    if last.detail.get("to") != memory.state.value or back not in actions_of(memory):
        back = None
    return Undo(last, back)


def _safe_until(memory: MemoryRecord, undo_days: float) -> datetime | None:
    if memory.state is not MemoryState.RETIRED:
        return None
    return memory.state_since + timedelta(days=undo_days)


def _curve(episode: Episode) -> charts.Lines | None:
    if not episode.curve:
        return None
    series = {
        "vote share": [step.vote_share for step in episode.curve],
        "mean reward": [step.reward_mean for step in episode.curve],
    }
    return charts.lines(series, labels=[f"step {step.step}" for step in episode.curve])
