"""What is trained with reference answers, or without a memory of its own, is for studies and enters no bank."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bank_helpers import MODEL, RECIPE, trained, unit

from elm_agent.errors import InputError
from elm_agent.records import MemoryState, Recipe
from elm_agent.storage.bank import Adopted, Bank

OFFLINE = [replace(RECIPE, objective="grpo_ground_truth"), replace(RECIPE, parameterisation="full")]


@pytest.mark.parametrize("recipe", OFFLINE, ids=["ground truth", "full"])
def test_no_bank_takes_what_is_for_studies(bank: Bank, recipe: Recipe) -> None:
    made, more = trained(unit(1, 0, 0, 0)), {"task": "math", "model": MODEL, "recipe": recipe}
    with pytest.raises(InputError, match="is for studies and never kept in a bank"):
        bank.jobs.enqueue("default", "one", task="math", model_id=MODEL.id, recipe=recipe)
    bank.jobs.enqueue("default", "one", task="math", model_id=MODEL.id, recipe=RECIPE)
    lease = bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    with pytest.raises(InputError, match="is for studies and never kept in a bank"):
        bank.publish(lease, made, state=MemoryState.ACTIVE, reason=None, **more)
    item = Adopted(question="one", prompt=made.prompt, keys=made.keys, origin="pack", **more)
    with pytest.raises(InputError, match="is for studies and never kept in a bank"):
        bank.adopt("default", [item], actor="import")
    assert bank.memories("default") == []


def test_what_approximates_is_kept_and_says_so(bank: Bank) -> None:
    recipe = replace(RECIPE, skip_equal_rewards=True, stop_when_settled=2, settled_share=0.9)
    bank.jobs.enqueue("default", "one", task="math", model_id=MODEL.id, recipe=recipe)
    lease = bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    more = {"task": "math", "model": MODEL, "recipe": lease.job.recipe}
    memory = bank.publish(lease, trained(unit(1, 0, 0, 0)), state=MemoryState.ACTIVE, reason=None, **more)
    assert bank.memory("default", memory.id).recipe == recipe
    assert recipe.approximations == ("skip_equal_rewards", "stop_when_settled")
