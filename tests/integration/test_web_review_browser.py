"""The review in a real browser: decided by keyboard and by button, taken back, and told to the second of two tabs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_web_browser import _DULL, WIDTH, bank, page, pytestmark, served  # noqa: F401 - fixtures

from elm_agent.bench.filling import model_of, trained, use_of
from elm_agent.records import AWAITS_REVIEW, MemoryState, Recipe, Review, Route
from elm_agent.storage.bank import Bank

PAGE = "/n/default/review"


@pytest.fixture
def waiting(bank: Bank) -> tuple[str, str, str]:  # noqa: F811
    """Two memories that wait, and a use."""
    recipe, model, made = Recipe(virtual_tokens=4), model_of(WIDTH), []
    for n in range(2):
        bank.jobs.enqueue("default", f"What is {n} plus {n}?", task="math", model_id=model.id, recipe=recipe)
        lease = bank.jobs.claim("worker", lease_seconds=600)
        assert lease is not None
        how: dict[str, Any] = {"task": "math", "model": model, "recipe": recipe, "reason": AWAITS_REVIEW}
        state = MemoryState.CANDIDATE
        one = bank.publish(lease, trained(np.random.default_rng(n), WIDTH), state=state, review=Review.WAITING, **how)
        made.append(one.id)
    served_one = bank.memories("default", state=MemoryState.ACTIVE, limit=1)[0].id
    use = use_of("default", served_one, route=Route.DEFERRED, answer="41", review=Review.WAITING)
    bank.record_use(use)
    return made[0], made[1], use.id


def test_what_waits_is_decided_and_taken_back(page: Any, bank: Bank, waiting: tuple[str, str, str]) -> None:  # noqa: F811
    first, second, use = waiting
    page.goto("/")
    page.get_by_role("link", name="Review of default").click()
    page.get_by_text("Waiting: memories 2, answers 1.").wait_for()
    page.get_by_label("Why, of What is 0 plus 0?").fill("it is right")
    page.keyboard.press("Enter")
    page.get_by_text("What is 0 plus 0?: approved, the memory is active.").wait_for()
    memory = bank.memory("default", first)
    assert (memory.state, memory.reason) == (MemoryState.ACTIVE, "it is right")
    page.get_by_role("button", name="Reject: What is 1 plus 1?").click()
    page.get_by_text("What is 1 plus 1?: rejected, the memory is retired.").wait_for()
    page.get_by_role("region", name="Last decision").get_by_role("button", name="Undo").click()
    page.get_by_text("Waiting: memories 1, answers 1.").wait_for()
    assert bank.memory("default", second).review is Review.WAITING
    page.get_by_role("button", name="The memory’s is right: What is 6 times 7?").click()
    page.get_by_text("approved, the memory’s answer 42 is right").first.wait_for()
    assert bank.use("default", use).feedback_effect == "helped"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(PAGE)
        assert page.evaluate(_DULL) == []


def test_the_second_of_two_tabs_is_told(page: Any, bank: Bank, waiting: tuple[str, str, str]) -> None:  # noqa: F811
    page.goto(PAGE)
    other = page.context.new_page()
    other.goto(PAGE)
    other.get_by_role("button", name="Approve: What is 0 plus 0?").click()
    other.get_by_text("What is 0 plus 0?: approved").wait_for()
    with page.expect_response(lambda answer: answer.request.method == "POST") as posted:
        page.get_by_role("button", name="Reject: What is 0 plus 0?").click()
    assert posted.value.status == 409
    page.get_by_role("alert").filter(has_text="nothing was done").wait_for()
    assert bank.memory("default", waiting[0]).state is MemoryState.ACTIVE
