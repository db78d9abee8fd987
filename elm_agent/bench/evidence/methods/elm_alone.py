"""Each memory alone, before every question: the offline protocol of the paper, without retrieval or verification."""

from __future__ import annotations

from collections.abc import Sequence

from elm_agent.bench.evidence.contract import Item, Learned, Outcome, Workplace
from elm_agent.bench.evidence.methods.elm_parts import (
    read_in_training,
    rollout_lines,
    rounded,
    step_lines,
    trainer_at,
)
from elm_agent.bench.evidence.methods.reading import Reading
from elm_agent.bench.evidence.methods.variants import memory_settings, recipe_of
from elm_agent.bench.evidence.trained import RememberedTrainer
from elm_agent.memory.admission import Rules, of_training, ruling
from elm_agent.memory.learn import memory_seed
from elm_agent.protocols import Trained


class ElmAlone:
    """A ``Maker`` of the agent's memories. ``elm:lora`` and the like name the recipe; see ``variants``."""

    def __init__(self, name: str, workplace: Workplace) -> None:
        self.name = name
        self._place = workplace
        self._owner = f"{name}/{workplace.seed}"
        self._recipe = recipe_of(name, workplace.settings, seed=workplace.seed)
        asked = memory_settings(name, workplace.settings, seed=workplace.seed).admission
        self._rules = Rules(**{bound: getattr(asked, bound) for bound in Rules.__dataclass_fields__})
        self.sees_answers = self._recipe.objective == "grpo_ground_truth"
        self._last: tuple[str, Trained] | None = None
        self._reading: Reading | None = None

    def learn(self, item: Item) -> Learned:
        trained, seed = self._trained(item), self._seed(item.question)
        mine = self._owner == self._trainer([item]).owner_of(item.question, recipe=self._recipe, seed=seed)
        found = ruling(of_training(trained, self._rules, min_vote_share=self._recipe.min_vote_share))
        return Learned(
            memory_id=item.id,
            state=found.state.value,
            reason=found.reason,
            texts=rollout_lines(trained.rollouts) if mine else (),
            curve=step_lines(trained.curve),
            key=rounded(trained.keys.input),
            tokens=sum(step.tokens for step in trained.curve),
            prompt_tokens=read_in_training(self._place, item, self._recipe, len(trained.curve)),
            seconds=trained.seconds,
        )

    def prepare(self, items: Sequence[Item]) -> None:
        """Train in cohorts."""
        together = self._place.settings.worker.concurrency
        questions = [item.question for item in items]
        self._trainer(items).prepare(questions, recipe=self._recipe, seed_of=self._seed, together=together)

    def answer_with(self, learner: Item, items: Sequence[Item]) -> list[Outcome]:
        self._trained(learner)
        assert self._reading is not None
        return self._reading.answer(items, memory=learner.id)

    def close(self) -> None:
        if self._reading is not None:
            self._reading.close()

    def _trained(self, item: Item) -> Trained:
        """The memory of an item; the last one is at hand."""
        if self._last is None or self._last[0] != item.id:
            self.close()
            trained = self._trainer([item]).train(
                item.question, recipe=self._recipe, seed=self._seed(item.question), observe=self._place.observe
            )
            self._last = (item.id, trained)
            self._reading = Reading(self._place, trained)
        return self._last[1]

    def _trainer(self, items: Sequence[Item]) -> RememberedTrainer:
        answers = {item.question: item.answer for item in items} if self.sees_answers else None
        return trainer_at(self._place, owner=self._owner, answers=answers)

    def _seed(self, question: str) -> int:
        return memory_seed(self._recipe, question)
