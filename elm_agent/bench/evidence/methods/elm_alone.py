"""Each memory alone, before every question: the offline protocol of the paper, without retrieval or verification."""

from __future__ import annotations

from collections.abc import Sequence

from elm_agent.adapters import Weights
from elm_agent.bench.evidence.contract import CandidateLine, Item, Learned, Outcome, Workplace
from elm_agent.bench.evidence.methods.elm_parts import (
    read_in_training,
    rollout_lines,
    rounded,
    step_lines,
    trainer_at,
)
from elm_agent.bench.evidence.methods.variants import recipe_of
from elm_agent.errors import InputError
from elm_agent.memory.answering import candidate
from elm_agent.memory.gate import admit
from elm_agent.memory.learn import memory_seed
from elm_agent.protocols import GenerationRequest, Trained


class ElmAlone:
    """A ``Maker`` of the agent's memories. ``elm:lora`` and the like name the recipe; see ``variants``."""

    def __init__(self, name: str, workplace: Workplace) -> None:
        self.name = name
        self._place = workplace
        self._recipe = recipe_of(name, workplace.settings, seed=workplace.seed)
        if self._recipe.parameterisation == "full":
            raise InputError(
                f"method {name!r}: a whole network is no prefix of a question, and cannot be asked with one"
            )
        self.sees_answers = self._recipe.objective == "grpo_ground_truth"
        self._last: tuple[str, Trained] | None = None

    def learn(self, item: Item) -> Learned:
        trained, mine = self._trained(item)
        state, reason = admit(trained.curve, self._recipe)
        return Learned(
            memory_id=item.id,
            state=state.value,
            reason=reason,
            texts=rollout_lines(trained.rollouts) if mine else (),
            curve=step_lines(trained.curve),
            key=rounded(trained.keys.input),
            tokens=sum(step.tokens for step in trained.curve),
            prompt_tokens=read_in_training(self._place, item, self._recipe, len(trained.curve)),
            seconds=trained.seconds,
        )

    def answer_with(self, learner: Item, items: Sequence[Item]) -> list[Outcome]:
        model, task = self._place.model, self._place.task
        prefix = self._trained(learner)[0].prompt
        assert not isinstance(prefix, Weights)
        asked = [model.encode(task.messages(item.question)) for item in items]
        limit = self._place.settings.max_new_tokens
        rows = [GenerationRequest(prompt_ids=ids, prefix=prefix, max_new_tokens=limit) for ids in asked]
        made = [candidate(one, task=task, memory_id=learner.id) for one in model.generate(rows)]
        return [
            Outcome(
                answer=one.answer,
                text=one.text,
                candidates=(CandidateLine.of("memory", one),),
                memory_id=learner.id,
                memory_item=learner.id,
                tokens=one.tokens,
                prompt_tokens=len(ids) + self._recipe.positions,
            )
            for one, ids in zip(made, asked, strict=True)
        ]

    def close(self) -> None:
        """Nothing is open."""

    def _trained(self, item: Item) -> tuple[Trained, bool]:
        """The memory of an item, and whether it was first trained here; the last one is at hand."""
        owner = f"{self.name}/{self._place.seed}"
        answers = {item.question: item.answer} if self.sees_answers else None
        if self._last is None or self._last[0] != item.id:
            trainer = trainer_at(self._place, owner=owner, answers=answers)
            seed = memory_seed(self._recipe, item.question)
            trained = trainer.train(item.question, recipe=self._recipe, seed=seed, observe=self._place.observe)
            self._last, self._mine = (item.id, trained), trainer.owners[item.digest] == owner
        return self._last[1], self._mine
