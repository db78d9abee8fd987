"""The offline references: one memory or network from the whole set, by votes (TTRL) or by the right answers (GRPO).

``ttrl`` and ``grpo``, with options as those of the agent and ``epochs=N``: ``ttrl:full+epochs=30``.
"""

from __future__ import annotations

from collections.abc import Sequence

from elm_agent.bench.evidence.contract import Item, Learned, Outcome, Workplace
from elm_agent.bench.evidence.methods.elm_parts import read_in_training, rollout_lines, step_lines
from elm_agent.bench.evidence.methods.reading import Reading
from elm_agent.bench.evidence.methods.variants import recipe_and_epochs
from elm_agent.bench.evidence.trained import read_trained, write_trained
from elm_agent.errors import SettingsError
from elm_agent.memory.learn import memory_seed
from elm_agent.protocols import Trained
from elm_agent.training.whole_set import SetTrainer, set_order


class WholeSet:
    """A ``Method`` of the offline protocol that ``Prepares``: all is learned there, and then told item by item."""

    learns = True

    def __init__(self, name: str, workplace: Workplace) -> None:
        self.name = name
        self._place = workplace
        self._recipe, self._epochs = recipe_and_epochs(name, workplace.settings, seed=workplace.seed)
        self.sees_answers = self._recipe.objective == "grpo_ground_truth"
        self._places: dict[str, int] = {}  # by item id
        self._trained: Trained | None = None
        self._reading: Reading | None = None

    def prepare(self, items: Sequence[Item]) -> None:
        """Train on all of them, or take what was trained."""
        self._places = {item.id: place for place, item in enumerate(items)}
        file = self._place.folder / "trained.safetensors"
        if file.exists():
            self._trained = read_trained(file, self._recipe, width=self._place.model.fingerprint.width)
        else:
            self._trained = self._train(items)
            if self._recipe.parameterisation != "full":
                write_trained(file, self._trained, owner=self.name)
        self._reading = Reading(self._place, self._trained)

    def answer(self, item: Item) -> Outcome:
        assert self._reading is not None, "the set comes first"
        return self._reading.answer([item])[0]

    def learn(self, item: Item, outcome: Outcome | None) -> Learned:
        """The steps that were made on this item."""
        del outcome
        assert self._trained is not None, "the set comes first"
        place, count = self._places[item.id], len(self._places)
        order = list(set_order(count, epochs=self._epochs, seed=self._seed))
        steps = [step for step, number in zip(self._trained.curve, order, strict=True) if number == place]
        numbers = {step.step for step in steps}
        return Learned(
            texts=rollout_lines(one for one in self._trained.rollouts if one.step in numbers),
            curve=step_lines(steps),
            tokens=sum(step.tokens for step in steps),
            prompt_tokens=read_in_training(self._place, item, self._recipe, len(steps)),
            seconds=sum(step.seconds for step in steps),
        )

    def restore(self, item: Item, learned: Learned) -> None:
        """The file has everything."""

    def close(self) -> None:
        if self._reading is not None:
            self._reading.close()

    def _train(self, items: Sequence[Item]) -> Trained:
        from elm_agent.models.engine import LocalModel

        if not isinstance(self._place.model, LocalModel):
            raise SettingsError(f"a {type(self._place.model).__name__} cannot be trained: use a local model")
        answers = {item.question: item.answer for item in items} if self.sees_answers else None
        return SetTrainer(self._place.model, self._place.task, answers=answers).train_set(
            [item.question for item in items],
            recipe=self._recipe,
            seed=self._seed,
            epochs=self._epochs,
            observe=self._place.observe,
        )

    @property
    def _seed(self) -> int:
        return memory_seed(self._recipe, "the whole set")
