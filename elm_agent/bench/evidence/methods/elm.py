"""The agent itself, as users have it: its graph answers, its queue learns, its bank keeps. And an oracle over it.

The bank lies in the method's folder, where a run that is taken up again finds it; what was trained is all methods',
so that those which differ in retrieval alone do not train twice.
"""

from __future__ import annotations

from dataclasses import replace

from elm_agent.bench.evidence.contract import CandidateLine, Item, Learned, Outcome, Workplace
from elm_agent.bench.evidence.methods.elm_parts import (
    NAMESPACE,
    own_bank,
    read_in_training,
    rollout_lines,
    rounded,
    step_lines,
    trainer_at,
)
from elm_agent.bench.evidence.methods.variants import settings_of
from elm_agent.bench.stream_parts import LOOK_SECONDS, wait_for
from elm_agent.errors import NotFound, StorageError, TaskError, TrainingError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.records import Candidate, JobState, KeyKind, MemoryRecord, Route
from elm_agent.runtime import Runtime, open_runtime


class Elm:
    """``elm``, ``elm_input``, ``elm_kv``, each with options after a colon; see ``variants``."""

    learns = True
    sees_answers = False

    def __init__(self, name: str, workplace: Workplace) -> None:
        self.name = name
        self._place = workplace
        self._settings = own_bank(settings_of(name, workplace.settings, seed=workplace.seed), workplace)
        self._trainer = trainer_at(workplace, owner=f"{name}/{workplace.seed}")
        self._runtime: Runtime = open_runtime(
            self._settings,
            model=workplace.model,
            task=workplace.task,
            trainer=self._trainer,
            observe=workplace.observe,
            owns_index=False,
        )
        self._graph = build_graph(self._runtime)
        self._learners: dict[str, str] = {}  # memory id -> id of its item

    def answer(self, item: Item) -> Outcome:
        result = self._graph.invoke({"question": item.question}, context={"learn": False})
        roles = {role: made for role in ("zero_shot", "memory") if (made := result["candidates"][role])}
        candidates = {role: CandidateLine.of(role, Candidate(**made)) for role, made in roles.items()}
        memory_id = result["memory_id"]
        read = len(self._place.model.encode(self._place.task.messages(item.question)))
        return Outcome(
            answer=result["answer"],
            text=result["text"],
            candidates=tuple(candidates.values()),
            route=result["route"],
            reason=result["reason"],
            memory_id=memory_id,
            memory_item=self._learners.get(memory_id or ""),
            similarity=result["similarity"],
            tokens=sum(one.tokens for one in candidates.values()),
            prompt_tokens=read * len(candidates) + ("memory" in candidates) * self._runtime.recipe.positions,
            detail={"explained": explained} if (explained := result.get("explanation")) else {},
        )

    def learn(self, item: Item, outcome: Outcome | None) -> Learned:
        del outcome
        jobs, runtime = self._runtime.bank.jobs, self._runtime
        job, _ = jobs.enqueue(
            NAMESPACE,
            item.question,
            task=runtime.task.name,
            model_id=runtime.model.fingerprint.id,
            recipe=runtime.recipe,
            max_attempts=1,
        )
        runtime.runner.notify()
        job = wait_for(
            lambda: jobs.get(NAMESPACE, job.id),
            pause=lambda: runtime.runner.wait_idle(LOOK_SECONDS),
            observe=self._place.observe,
        )
        if job.state is not JobState.DONE or job.memory_id is None:
            raise TrainingError(f"nothing was learned: {job.reason or job.state.value}")
        memory = runtime.bank.memory(NAMESPACE, job.memory_id)
        self._learners[memory.id] = item.id
        return self._learned(item, memory)

    def restore(self, item: Item, learned: Learned) -> None:
        if learned.memory_id is None:
            return
        try:
            self._runtime.bank.memory(NAMESPACE, learned.memory_id)
        except NotFound:
            raise StorageError(
                f"memory {learned.memory_id} of this run is not in {self._settings.home}: put the folder `work` "
                "back, or begin another run with --out"
            ) from None
        self._learners[learned.memory_id] = item.id

    def close(self) -> None:
        self._runtime.close()

    def _learned(self, item: Item, memory: MemoryRecord) -> Learned:
        episode = self._runtime.bank.episode(NAMESPACE, memory.id)
        keys = self._runtime.bank.keys(NAMESPACE, memory.id)
        kind = self._settings.retrieval.key
        mine = self._trainer.owners.get(item.digest) == f"{self.name}/{self._place.seed}"
        return Learned(
            memory_id=memory.id,
            state=memory.state.value,
            reason=memory.reason,
            texts=rollout_lines(episode.rollouts) if mine else (),
            curve=step_lines(episode.curve),
            key=rounded(keys.kv if kind is KeyKind.KV else keys.input),
            tokens=sum(step.tokens for step in episode.curve),
            prompt_tokens=read_in_training(self._place, item, memory.recipe, len(episode.curve)),
            seconds=episode.seconds,
        )


class Oracle(Elm):
    """Returns the right one of the agent's two candidates where there is one: what perfect routing would give."""

    sees_answers = True

    def answer(self, item: Item) -> Outcome:
        outcome = super().answer(item)
        right = next((one for one in outcome.candidates if one.answer and self._right(item, one.answer)), None)
        if right is None:
            return outcome
        route = outcome.route
        if route in (Route.MEMORY, Route.ZERO_SHOT):
            route = Route.MEMORY if right.role == "memory" else Route.ZERO_SHOT
        return replace(outcome, answer=right.answer, text=right.text, route=route)

    def _right(self, item: Item, answer: str) -> bool:
        judge = self._place.judge
        try:
            return judge(item, answer) if judge is not None else self._place.task.equivalent(answer, item.answer)
        except TaskError:  # cannot be compared, so it cannot be chosen; the runner records why
            return False
