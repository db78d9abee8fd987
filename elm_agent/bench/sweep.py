"""The small sweep behind the learning defaults: ``python -m elm_agent.bench.sweep --help``.

One memory is trained for each setting and question, then put before held-out questions of three families. The
first rows are controls: no memory at all, and each memory as it begins (the question's own embeddings, untrained).
Prints one JSON object a row. What it showed, and what was chosen, is in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from elm_agent.protocols import GenerationRequest, Task
from elm_agent.records import Recipe

if TYPE_CHECKING:
    from elm_agent.models.engine import LocalModel
    from elm_agent.softprompt import SoftPrompt

LEARNED_FROM = ("What is 7 times 8?", "What is 6 plus 9?")
MAX_NEW_TOKENS = 24

_FAMILIES: dict[str, Callable[[int, int], tuple[str, int]]] = {
    "products": lambda a, b: (f"What is {a} times {b}?", a * b),
    "sums": lambda a, b: (f"What is {a} plus {b}?", a + b),
    "differences": lambda a, b: (f"What is {a + b} minus {b}?", a),
}


def held_out(count: int, *, seed: int = 5) -> dict[str, list[tuple[str, int]]]:
    """``count`` questions of each family with operands from 2 to 9."""
    rng, held = random.Random(seed), {}
    for name, make in _FAMILIES.items():
        questions = [make(a, b) for a, b in itertools.product(range(2, 10), repeat=2)]
        rng.shuffle(questions)
        held[name] = questions[:count]
    return held


def accuracy(
    model: LocalModel, task: Task, prompt: SoftPrompt | None, held: dict[str, list[tuple[str, int]]]
) -> dict[str, float]:
    """Share of right greedy answers in each family, with ``prompt`` before the question."""
    shares = {}
    for name, questions in held.items():
        generations = model.generate(
            [
                GenerationRequest(
                    prompt_ids=model.encode(task.messages(question)), prefix=prompt, max_new_tokens=MAX_NEW_TOKENS
                )
                for question, _ in questions
            ]
        )
        answers = [task.extract(generation.text) for generation in generations]
        right = [answer == str(truth) for answer, (_, truth) in zip(answers, questions, strict=True)]
        shares[name] = round(sum(right) / len(right), 3)
    return shares


def sweep(model: LocalModel, task: Task, grid: list[Recipe], *, count: int) -> Iterator[dict[str, Any]]:
    """The controls, then one row for each recipe and question."""
    from elm_agent.softprompt import SoftPrompt
    from elm_agent.training import GrpoTrainer
    from elm_agent.training.numerics import initial_prompt

    held = held_out(count)
    yield {"memory": None, **accuracy(model, task, None, held)}
    for question in LEARNED_FROM:
        untrained = SoftPrompt(initial_prompt(model.text_embeddings(question), grid[0].virtual_tokens).contiguous())
        yield {"memory": question, "trained": False, **accuracy(model, task, untrained, held)}
    trainer = GrpoTrainer(model, task)
    for recipe, question in itertools.product(grid, LEARNED_FROM):
        trained = trainer.train(question, recipe=recipe, seed=1)
        assert isinstance(trained.prompt, SoftPrompt)
        yield {
            "memory": question,
            "temperature": recipe.temperature,
            "learning_rate": recipe.learning_rate,
            "beta": recipe.beta,
            "vote_share": [record.vote_share for record in trained.curve],
            "majority": [record.majority_answer for record in trained.curve],
            "seconds": round(trained.seconds, 1),
            **accuracy(model, task, trained.prompt, held),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.5, 0.7, 1.0])
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[1e-3, 5e-3])
    parser.add_argument("--beta", type=float, nargs="+", default=[0.0])
    parser.add_argument("--count", type=int, default=24, help="held-out questions of each family")
    given = parser.parse_args()
    grid = [
        Recipe(temperature=temperature, learning_rate=rate, beta=beta, max_new_tokens=MAX_NEW_TOKENS)
        for temperature, rate, beta in itertools.product(given.temperature, given.learning_rate, given.beta)
    ]
    from elm_agent import models
    from elm_agent.tasks import get_task

    model = models.load(given.model)
    try:
        for row in sweep(model, get_task("math"), grid, count=given.count):
            print(json.dumps(row), flush=True)
    finally:
        model.close()


if __name__ == "__main__":
    main()
