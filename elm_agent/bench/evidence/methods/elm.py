"""The agent itself, as users have it: its graph answers, its queue learns, its bank keeps. And an oracle over it.

The bank lies in the method's folder, where a run that is taken up again finds it; what was trained is all methods',
so that those which differ in retrieval alone do not train twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from elm_agent.bench.evidence.contract import Item, Learned, Outcome, Workplace
from elm_agent.bench.evidence.methods.elm_parts import (
    NAMESPACE,
    candidate_lines,
    drawn_lines,
    own_bank,
    read_in_training,
    rollout_lines,
    rounded,
    step_lines,
    trainer_at,
)
from elm_agent.bench.evidence.methods.variants import condensed_every, settings_of
from elm_agent.bench.evidence.methods.watched import Watched
from elm_agent.bench.stream_parts import LOOK_SECONDS, wait_for
from elm_agent.errors import NotFound, StorageError, TaskError, TrainingError
from elm_agent.integrations.langgraph import RunContext, build_graph
from elm_agent.integrations.langgraph.state import use_of
from elm_agent.memory.condensing import CondenseReport
from elm_agent.memory.learn import memory_seed
from elm_agent.memory.succession import DISTIL
from elm_agent.records import JobState, KeyKind, MemoryState, Route, Tier, UseOutcome, UseRecord, utcnow
from elm_agent.runtime import Runtime, condense_bank, open_runtime, refit_of


class Elm:
    """``elm``, ``elm_input``, ``elm_kv``, each with options after a colon; see ``variants``."""

    learns = True
    sees_answers = False

    def __init__(self, name: str, workplace: Workplace) -> None:
        self.name = name
        self._place = workplace
        self._settings = own_bank(settings_of(name, workplace.settings, seed=workplace.seed), workplace)
        self._owner = f"{name}/{workplace.seed}"
        self._trainer = trainer_at(workplace, owner=self._owner)
        self._model = Watched(workplace.model)  # what is drawn in training is counted by the trainer
        self._probing = 0.0  # seconds
        self._runtime: Runtime = open_runtime(
            self._settings,
            model=self._model,
            task=workplace.task,
            trainer=self._trainer,
            observe=self._hear,
            owns_index=False,
        )
        self._graph = build_graph(self._runtime)
        self._refit = refit_of(self._settings)
        self._condenses_every = condensed_every(name)
        self._lessons = 0
        self._learners: dict[str, str] = {}  # memory id -> id of its item

    def prepare(self, items: Sequence[Item]) -> None:
        """Train in cohorts: a memory depends on its question alone. Each comes into the bank when it is learned."""
        recipe = self._runtime.recipe
        self._trainer.prepare(
            [item.question for item in items],
            recipe=recipe,
            seed_of=lambda question: memory_seed(recipe, question),
            together=self._place.settings.worker.concurrency,
        )

    def answer(self, item: Item) -> Outcome:
        if self._refit is not None:  # each time, so that a run that is taken up again knows what the first one did
            self._refit(self._runtime.bank, NAMESPACE)
        self._model.start()
        context: RunContext = {"learn": False, "explain": True, "note": False}
        result = self._graph.invoke({"question": item.question}, context=context)
        memory_id = result["memory_id"]
        return Outcome(
            answer=result["answer"],
            text=result["text"],
            candidates=candidate_lines(result) + drawn_lines("sample", self._model.drawn, self._place.task),
            route=result["route"],
            reason=result["reason"],
            memory_id=memory_id,
            memory_item=self._learners.get(memory_id or ""),
            similarity=result["similarity"],
            **self._counts(),
            detail={"explanation": result.get("explanation"), **self._uses(result)},
        )

    def note(self, item: Item, outcome: Outcome) -> None:
        """The uses of the memory that served and of those that were heard: what later answers are ranked by, so not
        before the answer is stored."""
        uses = [outcome.detail.get("use"), *outcome.detail.get("heard", ())]
        for use in (one for one in uses if one is not None):
            given = {
                "key_kind": KeyKind(use["key_kind"]),
                "route": Route(use["route"]),
                "tier": Tier(use["tier"]),
                "outcome": UseOutcome.UNKNOWN,
                "created_at": utcnow(),
            }
            self._runtime.bank.record_use(UseRecord(**use | given, namespace=NAMESPACE, question=item.question))

    def learn(self, item: Item, outcome: Outcome | None) -> Learned:
        del outcome
        jobs, runtime = self._runtime.bank.jobs, self._runtime
        self._model.start()
        self._probing = 0.0
        job, _ = jobs.enqueue(
            NAMESPACE,
            item.question,
            task=runtime.task.name,
            model_id=runtime.model.fingerprint.id,
            recipe=runtime.recipe,
            max_attempts=runtime.settings.worker.max_attempts,
        )
        runtime.runner.notify()
        job = wait_for(
            lambda: jobs.get(NAMESPACE, job.id),
            pause=lambda: runtime.runner.wait_idle(LOOK_SECONDS),
            observe=self._place.observe,
        )
        if job.state is not JobState.DONE or job.memory_id is None:
            raise TrainingError(f"nothing was learned: {job.reason or job.state.value}")
        runtime.runner.wait_idle()  # a split vote may have queued the question again
        learned = self._learned(item, job.memory_id)
        self._lessons += 1
        if self._condenses_every is not None and self._lessons % self._condenses_every == 0:
            return self._condensed(learned)
        return learned

    def _condensed(self, learned: Learned) -> Learned:
        """The bank is made smaller; what that takes counts for the question that was learned last."""
        bank = self._runtime.bank
        self._model.start()
        report = condense_bank(
            bank,
            self._settings,
            merge=True,
            distil=True,
            model=self._model,
            student=self._place.model,
            task=self._place.task,
            cancelled=lambda: bool(self._place.stop),
        )
        self._place.stop.check()  # it has not done all of it then, and the next process begins with this question
        counts = self._counts()
        return replace(
            learned,
            tokens=learned.tokens + counts["tokens"] + self._taught(report),
            prompt_tokens=learned.prompt_tokens + counts["prompt_tokens"],
            seconds=(learned.seconds or 0.0) + report.seconds,
            kept={
                **learned.kept,
                "condensed": {
                    "retired": report.retired,
                    "made": report.made,
                    "active": len(bank.memories(NAMESPACE, state=MemoryState.ACTIVE)),
                },
            },
        )

    def _taught(self, report: CondenseReport) -> int:
        """Tokens that teachers wrote for the memories that were made."""
        made = [one.successor for one in report.tried if one.how == DISTIL and one.successor is not None]
        return sum(
            rollout.tokens for name in made for rollout in self._runtime.bank.episode(NAMESPACE, name).rollouts
        )

    def restore(self, item: Item, learned: Learned) -> None:
        self._lessons += 1
        for memory_id in learned.kept.get("memories", ()):
            try:
                self._runtime.bank.memory(NAMESPACE, memory_id)
            except NotFound:
                raise StorageError(
                    f"memory {memory_id} of this run is not in {self._settings.home}: put the folder `work` back, or "
                    "begin another run with --out"
                ) from None
            self._learners[memory_id] = item.id

    def close(self) -> None:
        self._runtime.close()

    def _counts(self) -> dict[str, int]:
        """Tokens since the last start; a memory is read by each row that it stands before."""
        counts = self._model.counts
        read = counts["prompt_tokens"] + self._model.memory_rows * self._runtime.recipe.positions
        return {"tokens": counts["tokens"], "prompt_tokens": read}

    def _uses(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """What is to be noted of an answer, in plain values; nothing where no memory served."""
        if result["use_id"] is None:
            return {"use": None}
        memory, zero_shot = result["candidates"]["memory"], result["candidates"]["zero_shot"]
        use = {
            "id": result["use_id"],
            "memory_id": result["memory_id"],
            "memory_namespace": result["memory_namespace"],
            "similarity": result["similarity"] or 0.0,
            "key_kind": self._settings.retrieval.key.value,
            "route": result["route"],
            "reason": result["reason"],
            "answer": result["answer"],
            "memory_answer": None if memory is None else memory["answer"],
            "zero_shot_answer": None if zero_shot is None else zero_shot["answer"],
            "tier": result["explanation"]["budget"]["tier"],
        }
        heard = [use | use_of(one) for one in result.get("heard") or ()]
        return {"use": use} | ({"heard": heard} if heard else {})

    def _hear(self, name: str, detail: dict[str, Any]) -> None:
        if name == "probe.done":
            self._probing += detail["seconds"]
        self._place.observe(name, detail)

    def _learned(self, item: Item, memory_id: str) -> Learned:
        """What the bank has since then: one memory, two of a question learned again, none of an equal question."""
        bank = self._runtime.bank
        memory = bank.memory(NAMESPACE, memory_id)
        equal = [one for one in bank.memories(NAMESPACE) if one.question_digest == item.digest]
        made = [one for one in equal if one.id not in self._learners]
        self._learners |= dict.fromkeys((one.id for one in made), item.id)
        if not made:
            return Learned(
                memory_id=memory_id, state=memory.state.value, reason="an equal question was learned before"
            )
        probe = self._counts()
        episodes = [bank.episode(NAMESPACE, one.id) for one in made]
        keys = bank.keys(NAMESPACE, memory_id)
        steps = [step for episode in episodes for step in episode.curve]
        seed = memory_seed(memory.recipe, item.question)
        mine = self._owner == self._trainer.owner_of(item.question, recipe=memory.recipe, seed=seed)
        return Learned(
            memory_id=memory_id,
            state=memory.state.value,
            reason=memory.reason,
            texts=(rollout_lines(one for episode in episodes for one in episode.rollouts) if mine else ())
            + drawn_lines("probe", self._model.ended, self._place.task),
            curve=step_lines(bank.episode(NAMESPACE, memory_id).curve),
            key=rounded(keys.kv if self._settings.retrieval.key is KeyKind.KV else keys.input),
            tokens=sum(step.tokens for step in steps) + probe["tokens"],
            prompt_tokens=read_in_training(self._place, item, memory.recipe, len(steps)) + probe["prompt_tokens"],
            seconds=sum(episode.seconds for episode in episodes) + self._probing,
            kept={"memories": sorted(one.id for one in made)},
        )


class Oracle(Elm):
    """Returns the right one of the agent's two candidates where there is one: what perfect routing would give."""

    sees_answers = True

    def answer(self, item: Item) -> Outcome:
        outcome = super().answer(item)
        return best_of(outcome, lambda answer: self._right(item, answer))

    def _right(self, item: Item, answer: str) -> bool:
        judge = self._place.judge
        try:
            return judge(item, answer) if judge is not None else self._place.task.equivalent(answer, item.answer)
        except TaskError:  # cannot be compared, so it cannot be chosen; the runner records why
            return False


def best_of(outcome: Outcome, right: Callable[[str], bool]) -> Outcome:
    """The outcome with the candidate that is right, if one is."""
    pair = [one for one in outcome.candidates if one.role in (Route.ZERO_SHOT, Route.MEMORY)]
    found = next((one for one in pair if one.answer is not None and right(one.answer)), None)
    if found is None:
        return outcome
    decided = outcome.route in (Route.MEMORY, Route.ZERO_SHOT)
    route = Route(found.role).value if decided else outcome.route
    return replace(outcome, answer=found.answer, text=found.text, route=route)
