"""The review on the page: what waits, with its buttons; undone by them, and never over somebody else's decision."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from page_helpers import RECIPE, WIDTH, Browser, words_of

from elm_agent.bench.filling import model_of, trained, use_of
from elm_agent.records import AWAITS_REVIEW, MemoryState, Review, Route
from elm_agent.storage.bank import Bank
from elm_agent.web.walls import Walls

PAGE = "/n/default/review"


def wait(bank: Bank, question: str) -> str:
    """A memory that waits."""
    bank.bind("default", model_of(WIDTH))
    bank.jobs.enqueue("default", question, task="math", model_id=model_of(WIDTH).id, recipe=RECIPE)
    lease = bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    made = trained(np.random.default_rng(len(question)), WIDTH)
    how: dict[str, Any] = {"task": "math", "model": model_of(WIDTH), "recipe": RECIPE, "reason": AWAITS_REVIEW}
    return bank.publish(lease, made, state=MemoryState.CANDIDATE, review=Review.WAITING, **how).id


def differ(bank: Bank, question: str = "What is 6 times 7?") -> str:
    """A use that waits."""
    memory_id = wait(bank, f"of {question}")
    bank.reviews.decide_memory("default", memory_id, Review.APPROVED, actor="test")
    use = use_of(
        "default",
        memory_id,
        question=question,
        route=Route.DEFERRED,
        answer="41",
        reason="the <b>memory's</b> was preferred",
        review=Review.WAITING,
    )
    bank.record_use(use)
    return use.id


def press(browser: Browser, id: str, action: str, **fields: str) -> Any:
    """Press a button of the row that the page shows now."""
    page = browser.get(PAGE).text
    row = page[page.index(f"/review/{id}/") :]
    revision = re.search(r'name="revision" value="(\d+)"', row)
    assert revision is not None
    return browser.post(f"{PAGE}/{id}/{action}", {"form": browser.form_on(PAGE), "revision": revision[1], **fields})


def test_memories_are_approved_and_rejected_and_taken_back(bank: Bank) -> None:
    first, second = wait(bank, "What is 1 times 7?"), wait(bank, "What is <i>2</i> times 7?")
    browser = Browser(bank)
    text = browser.text(PAGE)
    assert "Waiting: memories 2, answers 0." in text
    assert "What is <i>2</i> times 7?" in text
    assert "<i>2" not in browser.get(PAGE).text
    assert "Review (2)" in browser.text("/")
    answer = press(browser, first, "approve", note="it is right")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{PAGE}?done={first}#change")
    text = browser.text(f"{PAGE}?done={first}")
    assert "What is 1 times 7?: approved, the memory is active." in text
    assert "Waiting: memories 1, answers 0." in text
    memory = bank.memory("default", first)
    assert (memory.state, memory.reason) == (MemoryState.ACTIVE, "it is right")
    assert press(browser, second, "reject").status_code == 303
    assert bank.memory("default", second).state is MemoryState.RETIRED
    assert "rejected, the memory is retired" in browser.text(PAGE)
    for id in (first, second):
        assert press(browser, id, "undo").status_code == 303
        assert bank.memory("default", id).review is Review.WAITING
    assert "Waiting: memories 2, answers 0." in browser.text(PAGE)
    assert {event.actor for event in bank.events("default", first)[2:]} == {"web page"}


def test_answers_are_decided_and_taken_back(bank: Bank) -> None:
    use = differ(bank)
    browser = Browser(bank)
    text = browser.text(PAGE)
    for words in (
        "Waiting: memories 0, answers 1.",
        "What is 6 times 7?",
        "42 41",
        "the <b>memory's</b> was preferred",
    ):
        assert words in text
    assert "<b>memory" not in browser.get(PAGE).text
    assert press(browser, use, "approve", note="I counted").status_code == 303
    assert bank.use("default", use).feedback_effect == "helped"
    assert "approved, the memory’s answer 42 is right" in browser.text(f"{PAGE}?done={use}")
    assert press(browser, use, "undo").status_code == 303
    assert bank.use("default", use).feedback is None
    assert press(browser, use, "reject").status_code == 303
    assert "rejected, the plain answer 41 is right" in browser.text(PAGE)


def test_the_second_of_two_pages_is_told(browser: Browser, local_bank: Bank) -> None:
    memory, use = wait(local_bank, "What is 1 times 7?"), differ(local_bank)
    form, old = browser.form_on(PAGE), local_bank.memory("default", memory).revision
    for id in (memory, use):
        assert press(browser, id, "approve").status_code == 303  # the other page
        answer = browser.post(f"{PAGE}/{id}/reject", {"form": form, "revision": old})
        assert answer.status_code == 409
        assert "nothing was done" in words_of(answer)
        onward = re.search(r'<a href="([^"]+)">Look again', answer.text)
        if onward is not None:
            assert browser.get(onward[1]).headers["location"] == f"{PAGE}?done={id}"
    assert local_bank.memory("default", memory).state is MemoryState.ACTIVE
    assert local_bank.use("default", use).review is Review.APPROVED


def test_what_cannot_be_is_refused(browser: Browser, local_bank: Bank) -> None:
    memory = wait(local_bank, "What is 1 times 7?")
    form, revision = browser.form_on(PAGE), local_bank.memory("default", memory).revision
    good = {"form": form, "revision": revision}
    assert browser.post(f"{PAGE}/{memory}/approve", good | {"form": "0" * 32}).status_code == 403
    assert browser.post(f"{PAGE}/{memory}/approve", good, origin="http://elsewhere").status_code == 403
    assert browser.post(f"{PAGE}/{memory}/approve", {"form": form}).status_code == 400
    assert browser.post(f"{PAGE}/{memory}/keep", good).status_code == 404
    assert browser.post(f"{PAGE}/mem_x/approve", good).status_code == 404
    assert browser.post(f"{PAGE}/use_x/approve", good).status_code == 404
    assert browser.post(f"{PAGE}/{memory}/undo", good).status_code == 409
    assert browser.post(f"{PAGE}/{memory}/approve", good | {"note": "a" * 2001}).status_code == 400
    for path in (f"{PAGE}?done=mem_x", f"{PAGE}?done=../x", f"{PAGE}?memories=~", "/n/nowhere/review"):
        assert browser.get(path).status_code == 404, path
    assert local_bank.memory("default", memory).review is Review.WAITING


def test_who_may_only_read_has_no_buttons(local_bank: Bank) -> None:
    memory = wait(local_bank, "What is 1 times 7?")
    browser = Browser(local_bank, walls=Walls(changed=frozenset()))
    page = browser.get(PAGE)
    assert "What is 1 times 7?" in page.text
    assert "<button" not in page.text
    revision = local_bank.memory("default", memory).revision
    form = Browser(local_bank).form_on(PAGE)
    assert browser.post(f"{PAGE}/{memory}/approve", {"form": form, "revision": revision}).status_code == 403
    assert local_bank.memory("default", memory).review is Review.WAITING


def test_a_long_queue_has_pages(browser: Browser, local_bank: Bank) -> None:
    ids = [wait(local_bank, f"What is {n} times 7?") for n in range(27)]
    first = browser.get(PAGE).text
    onward = re.search(r'href="([^"]+)">More memories', first)
    assert onward is not None
    second = browser.get(onward[1]).text
    seen = [re.findall(r"/review/(mem_\w+)/approve", text) for text in (first, second)]
    assert seen == [ids[:25], ids[25:]]
    assert "More memories" not in second
    assert ">First<" in second


def test_it_is_fit_for_keyboards_and_screen_readers(browser: Browser, local_bank: Bank) -> None:
    wait(local_bank, "What is 1 times 7?")
    differ(local_bank)
    press(browser, local_bank.reviews.memories("default")[0].id, "approve")
    wait(local_bank, "What is 2 times 7?")
    text = browser.get(PAGE).text
    assert text.count("<h1") == 1
    assert 'aria-current="page">Review<' in text
    for field in re.findall(r"<(?:input|select|textarea)[^>]*>", text):
        if 'type="hidden"' not in field:
            before = text[: text.index(field)]
            assert before.rindex("<label") > before.rfind("</label"), field
    buttons = re.findall(r"<button[^>]*aria-label=\"([^\"]+)\"", text)
    assert len(buttons) >= 6
    assert len(set(buttons)) >= 5, "each says what it is about"
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        assert "<caption" in table
        assert 'scope="col"' in table


def test_an_empty_queue_says_so(browser: Browser, local_bank: Bank) -> None:
    local_bank.bind("default", model_of(WIDTH))
    text = browser.text(PAGE)
    assert "No memory waits." in text
    assert "No answer waits." in text
