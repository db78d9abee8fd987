"""What waits for a person, memories that are to serve and answers; and what was decided lately."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from elm_agent.errors import InputError, NotFound
from elm_agent.memory.reviewing import LONGEST_NOTE, Reviewed, decide, look, of_memory, of_use, undo
from elm_agent.records import Review
from elm_agent.storage.bank import Bank
from elm_agent.web import forms
from elm_agent.web.desk import ACTOR, Desk, url

SIZE = 25
LATELY = 10  # of each kind and verdict
VERDICTS = {"approve": Review.APPROVED, "reject": Review.REJECTED}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing as a row shows it. ``learned``: the answer of a memory's last vote."""

    found: Reviewed
    learned: str | None = None

    @property
    def when(self) -> datetime:
        """It came, or was decided."""
        memory, use = self.found.memory, self.found.use
        if memory is not None:
            return memory.state_since
        assert use is not None
        return use.created_at if use.feedback_at is None or use.review is Review.WAITING else use.feedback_at

    @property
    def revision(self) -> int:
        """What a button on it is shown with; of an answer there is none."""
        return 0 if self.found.memory is None else self.found.memory.revision


def show(desk: Desk, request: Request) -> Response:
    info = desk.namespace(request)
    query = dict(request.query_params)
    bank, reviews = desk.bank, desk.bank.reviews
    memories = reviews.memories(info.name, after=_place(query, "memories"), limit=SIZE + 1)
    answers = reviews.answers(info.name, after=_place(query, "answers"), limit=SIZE + 1)
    done = query.get("done")
    return desk.page(
        request,
        "review.html",
        namespace=info,
        waiting=reviews.count(info.name),
        memories=[Line(of_memory(one), bank.episode(info.name, one.id).majority_answer) for one in memories[:SIZE]],
        answers=[Line(of_use(one)) for one in answers[:SIZE]],
        more_memories=memories[SIZE - 1].id if len(memories) > SIZE else None,
        more_answers=answers[SIZE - 1].id if len(answers) > SIZE else None,
        later=bool(query.get("memories") or query.get("answers")),
        done=Line(look(bank, info.name, forms.known(done, "memory or use"))) if done else None,
        decided=_decided(bank, info.name),
        longest=LONGEST_NOTE,
    )


def show_one(desk: Desk, request: Request) -> Response:
    """What a form was about, among the rest."""
    info = desk.namespace(request)
    return RedirectResponse(url("n", info.name, "review", done=forms.identifier(request, "id")), status_code=303)


def change(desk: Desk, request: Request, fields: dict[str, str]) -> Response:
    """Do what a button says, unless somebody decided since the page with the button was made."""
    info, id = desk.namespace(request), forms.identifier(request, "id")
    desk.walls.check_change(info)
    action, revision = str(request.path_params["action"]), forms.number(fields, "revision")
    if revision is None:
        raise InputError("the form does not say which revision of the memory it is about: nothing was done")
    if action == "undo":
        undo(desk.bank, info.name, id, actor=ACTOR, expected=revision)
    elif action in VERDICTS:
        note = forms.text(fields, "note")
        decide(desk.bank, info.name, id, VERDICTS[action], actor=ACTOR, note=note, expected=revision)
    else:
        raise NotFound(f"there is nothing called {action[:40]!r} to do with a review")
    return RedirectResponse(url("n", info.name, "review", done=id) + "#change", status_code=303)


def _decided(bank: Bank, namespace: str) -> list[Line]:
    """Of the newest of each kind what was decided last, first."""
    found: list[Line] = []
    for verdict in VERDICTS.values():
        found += [Line(of_memory(one)) for one in bank.reviews.memories(namespace, verdict, limit=LATELY)]
        found += [Line(of_use(one)) for one in bank.reviews.answers(namespace, verdict, limit=LATELY)]
    return sorted(found, key=lambda line: line.when, reverse=True)


def _place(query: dict[str, str], name: str) -> str | None:
    value = query.get(name)
    return forms.known(value, "place") if value else None
