"""What a user's "right" or "wrong" says of a memory, and the question that was answered wrongly, learnt once more.

Knows no model: candidates and their answers stand in the use. The last word on an answer counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from elm_agent.errors import InputError
from elm_agent.memory.answering import check_storable
from elm_agent.protocols import Observer, Task
from elm_agent.records import Effect, Feedback, JobState, MemoryState, Recipe, Route, UseRecord

if TYPE_CHECKING:
    from elm_agent.memory.replay import Replay
    from elm_agent.storage.bank import Bank
    from elm_agent.storage.uses import Noted

LONGEST_ANSWER = 2_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackReport:
    """``feedback``: what counts now. ``replaced``: what counted before, if it was another word.

    ``recorded``: whether anything changed. ``memory_state``: of the memory, after it was judged. ``job_id``: of the
    replay, whether or not it is new; None: nothing is learnt again.
    """

    use_id: str
    namespace: str
    memory_id: str
    memory_namespace: str
    question: str
    route: Route
    feedback: Feedback
    answer: str | None
    effect: Effect | None
    recorded: bool
    replaced: Feedback | None
    replaced_answer: str | None
    memory_state: MemoryState
    job_id: str | None = None
    job_state: JobState | None = None


def give_feedback(
    bank: Bank,
    namespace: str,
    use_id: str,
    feedback: Feedback | str,
    *,
    task: Task,
    answer: str | None = None,
    replay: Replay | None = None,
    recipe: Recipe | None = None,
    observe: Observer | None = None,
) -> FeedbackReport:
    """Note what a user said of a use's answer, judge the memory by it, and queue a wrong answer's question again.

    ``answer``: the right one. The same word twice is one word; another one replaces it. ``replay``, ``recipe``: how
    the question is learnt again; without both it is not.

    Raises:
        NotFound: no such use in ``namespace``.
        InputError: a word that is neither right nor wrong, or an answer that is blank, too long or contradicts it.
        TaskError: the task cannot compare the answers; nothing was noted.
    """
    word, right = _checked_word(feedback), _checked_answer(answer)
    use = bank.use(namespace, use_id)
    effect = effect_of(use, word, right, task)
    noted = bank.note_feedback(namespace, use_id, word, answer=right, effect=effect, observe=observe)
    home = use.memory_namespace or namespace
    report = _report(noted, home, bank.memory(home, use.memory_id).state)
    if replay is None or recipe is None or word is Feedback.RIGHT:
        return report
    job = replay.of_question(
        bank,
        namespace,
        use.question,
        task=task.name,
        model_id=bank.namespace(namespace).model.id,
        recipe=recipe,
        subject=use.subject,
    )
    return replace(report, job_id=job.id, job_state=job.state)


def effect_of(use: UseRecord, feedback: Feedback, right: str | None, task: Task) -> Effect | None:
    """What the memory's answer was beside the plain one, if the user is right; None: it cannot be known.

    Raises ``InputError`` when ``right``, the right answer, contradicts ``feedback``.
    """
    if right is not None:
        return _effect_of_answer(use, feedback, right, task)
    if use.route is Route.MEMORY_ALONE:
        return _effect_alone(feedback)
    if use.route is Route.AGREED:
        return Effect.SAME
    if use.route is Route.OUTVOTED:  # a third answer was returned: if it is right, both others were wrong
        return Effect.SAME if feedback is Feedback.RIGHT else None
    if use.route not in (Route.MEMORY, Route.ZERO_SHOT, Route.DEFERRED) or use.memory_answer == use.zero_shot_answer:
        return None  # the memory gave no answer, or nobody could compare
    good = feedback is Feedback.RIGHT
    if use.route is Route.MEMORY:
        return Effect.HELPED if good else Effect.PERHAPS_HURT
    return Effect.HURT if good else Effect.PERHAPS_HELPED


def _effect_of_answer(use: UseRecord, feedback: Feedback, right: str, task: Task) -> Effect | None:
    returned = _same(use.answer, right, task)
    if returned is not (feedback is Feedback.RIGHT):
        what = f"the answer that was returned is {_shown(use.answer)}, and {right[:80]!r}"
        if returned:
            raise InputError(f"{what} means the same: say right, or give another answer")
        raise InputError(f"{what} means something else: say wrong, or leave the answer out")
    if use.route is Route.MEMORY_ALONE:
        return _effect_alone(feedback)
    compared = (Route.MEMORY, Route.ZERO_SHOT, Route.DEFERRED, Route.AGREED)
    if use.memory_answer is None and use.route not in compared:
        return None
    memory, plain = _same(use.memory_answer, right, task), _same(use.zero_shot_answer, right, task)
    if memory == plain:
        return Effect.SAME
    return Effect.HELPED if memory else Effect.HURT


def _effect_alone(feedback: Feedback) -> Effect:
    """Of an answer that nothing was compared with: the plain one may have been right, or not."""
    return Effect.PERHAPS_HELPED if feedback is Feedback.RIGHT else Effect.PERHAPS_HURT


def _same(answer: str | None, right: str, task: Task) -> bool:
    return answer is not None and task.equivalent(answer, right)


def _shown(answer: str | None) -> str:
    return "no answer" if answer is None else repr(answer[:80])


def _checked_word(feedback: object) -> Feedback:
    try:
        return Feedback(feedback)  # type: ignore[arg-type]  # whatever it is, it is one of them or refused
    except ValueError:
        raise InputError(f"feedback is 'right' or 'wrong'; got {str(feedback)[:40]!r}") from None


def _checked_answer(answer: object) -> str | None:
    if answer is None:
        return None
    if not isinstance(answer, str):
        raise InputError(f"an answer is a text; got {type(answer).__name__}")
    if not answer.strip() or len(answer) > LONGEST_ANSWER:
        raise InputError(f"an answer has 1 to {LONGEST_ANSWER} characters; got {len(answer.strip())}")
    check_storable(answer, "answer")
    return answer.strip()


def _report(noted: Noted, home: str, state: MemoryState) -> FeedbackReport:
    use, before = noted.use, noted.before
    assert use.feedback is not None
    return FeedbackReport(
        use_id=use.id,
        namespace=use.namespace,
        memory_id=use.memory_id,
        memory_namespace=home,
        question=use.question,
        route=use.route,
        feedback=use.feedback,
        answer=use.feedback_answer,
        effect=use.feedback_effect,
        recorded=noted.changed,
        replaced=before.feedback if noted.replaced else None,
        replaced_answer=before.feedback_answer if noted.replaced else None,
        memory_state=state,
    )
