"""What the buttons do: through the bank's own functions, undone by them, and never over somebody else's change."""

from __future__ import annotations

from page_helpers import RECIPE, Browser, fill, words_of

from elm_agent.bench.filling import model_of
from elm_agent.records import EventKind, JobState, MemoryState
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger import chain

LIST = "/n/default/memories"


def test_evict_and_undo_are_events_of_the_ledger(bank: Bank) -> None:
    [memory_id] = fill(bank, "default", 1)
    browser, path = Browser(bank), f"{LIST}/{memory_id}"
    answer = browser.press(path, "evict", reason="it did harm")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{path}#change")
    memory = bank.memory("default", memory_id)
    assert (memory.state, memory.reason) == (MemoryState.RETIRED, "it did harm")
    page = browser.text(path)
    assert "Last change: evicted" in page
    assert "by web page" in page
    assert "It can be restored; no purge takes it before" in page
    assert "Undo: restore" in page
    assert browser.press(path, "restore", reason="undo").status_code == 303
    assert bank.memory("default", memory_id).state is MemoryState.ACTIVE
    assert "Undo: evict" in browser.text(path)
    kinds = [(event.kind, event.actor) for event in bank.events("default", memory_id)[1:]]
    assert kinds == [(EventKind.EVICTED, "web page"), (EventKind.RESTORED, "web page")]
    assert chain.verify(bank.database, "default").broken is None


def test_every_change_can_be_taken_back_but_the_first_of_a_candidate(browser: Browser, local_bank: Bank) -> None:
    [active] = fill(local_bank, "default", 1)
    path = f"{LIST}/{active}"
    for action, undo in (
        ("quarantine", "restore"),
        ("evict", "quarantine"),
        ("quarantine", "evict"),
        ("restore", "quarantine"),
        ("pin", "unpin"),
        ("unpin", "pin"),
        ("evict", "restore"),
    ):
        assert browser.press(path, action).status_code == 303, action
        assert f"Undo: {undo}" in browser.text(path), action
    [candidate] = fill(local_bank, "other", 1, state=MemoryState.CANDIDATE)
    path = f"/n/other/memories/{candidate}"
    assert browser.press(path, "restore").status_code == 303
    page = browser.text(path)
    assert "Last change: activated" in page
    assert "Undo" not in page  # nothing makes it a candidate again


def test_the_second_of_two_pages_is_told(browser: Browser, local_bank: Bank, memory_ids: list[str]) -> None:
    path = f"{LIST}/{memory_ids[0]}"
    form, old = browser.form_on(path), local_bank.memory("default", memory_ids[0]).revision
    assert browser.press(path, "pin").status_code == 303  # the other page
    answer = browser.post(f"{path}/quarantine", {"form": form, "revision": old, "reason": ""})
    assert answer.status_code == 409
    assert "was changed on" in words_of(answer)
    assert "nothing was done; look again" in words_of(answer)
    assert "Changed meanwhile" in words_of(answer)
    assert f'href="{path}"' in answer.text
    memory = local_bank.memory("default", memory_ids[0])
    assert (memory.state, memory.pinned) == (MemoryState.ACTIVE, True)


def test_a_pinned_memory_is_not_evicted(browser: Browser, memory_ids: list[str]) -> None:
    path = f"{LIST}/{memory_ids[0]}"
    browser.press(path, "pin")
    assert "Evict" not in browser.text(path)
    answer = browser.press(path, "evict")
    assert answer.status_code == 400
    assert "is pinned: unpin it before it is evicted" in words_of(answer)


def test_jobs_are_cancelled_and_queued_again(browser: Browser, local_bank: Bank) -> None:
    local_bank.bind("default", model_of(16))
    job, _ = local_bank.jobs.enqueue("default", "Q", task="math", model_id=model_of(16).id, recipe=RECIPE)
    path = f"/n/default/jobs/{job.id}"
    for action, state in (("cancel", JobState.CANCELLED), ("retry", JobState.QUEUED)):
        assert browser.post(f"{path}/{action}", {"form": browser.form_on("/n/default/jobs")}).status_code == 303
        assert local_bank.jobs.get("default", job.id).state is state
    answer = browser.post(f"{path}/retry", {"form": browser.form_on("/n/default/jobs")})
    assert answer.status_code == 400
    assert "only a failed or cancelled job can be retried" in words_of(answer)
