"""Every view shows what is in the bank, on SQLite and on PostgreSQL."""

from __future__ import annotations

import re

import numpy as np
from page_helpers import RECIPE, Browser, fill, use, words_of

from elm_agent.bench.filling import model_of, trained
from elm_agent.records import MemoryState, Route, UseOutcome
from elm_agent.storage.bank import Bank

LIST = "/n/default/memories"


def questions_on(browser: Browser, path: str) -> list[str]:
    """The numbers n of "What is n times 7?", in the order of the page."""
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text
    return re.findall(r">What is (\d+) times 7\?</a>", answer.text)


def test_every_view_of_a_bank_with_a_story(bank: Bank) -> None:
    ids = fill(bank, "default", 5)
    use(bank, "default", ids[0], UseOutcome.FIXED, Route.MEMORY)
    use(bank, "default", ids[0], UseOutcome.BROKEN, Route.MEMORY)
    use(bank, "default", ids[1], UseOutcome.BOTH_RIGHT, Route.AGREED)
    bank.transition("default", ids[4], MemoryState.RETIRED, actor="somebody", reason="it was <b>wrong</b>")
    job, _ = bank.jobs.enqueue("default", "To learn?", task="math", model_id=model_of(16).id, recipe=RECIPE)
    browser = Browser(bank)

    overview = browser.text("/")
    assert "default made-up-16 0 4 0 1 0" in overview
    assert "1 queued" in overview

    assert questions_on(browser, LIST) == ["4", "3", "2", "1", "0"]
    assert questions_on(browser, f"{LIST}?order=used") == ["0", "1"]
    assert questions_on(browser, f"{LIST}?order=broken") == ["0"]
    assert questions_on(browser, f"{LIST}?state=retired") == ["4"]
    assert questions_on(browser, f"{LIST}?text=IS+3") == ["3"]
    assert "No memory is like that." in browser.text(f"{LIST}?text=zebra")
    assert "5 of 5 on this page, newest first." in browser.text(LIST)
    assert "1 of 1 on this page" in browser.text(f"{LIST}?state=retired")
    assert "1 on this page" in browser.text(f"{LIST}?text=IS+3")  # nobody counted the others

    page = browser.text(f"{LIST}/{ids[0]}")
    for words in (
        "What is 0 times 7?",
        "active",
        "Uses 2",
        "Fixed 1",
        "Broken 1",
        "Answer it learned 42",
        "made-up-16",
    ):
        assert words in page
    assert "it fixed 1 answers and broke 1" in page
    assert "imported" in page.split("Ledger")[-1]
    assert page.index("What it is") < page.index("Change it")
    assert "It serves: questions near to its own" in page
    assert "<polyline" in browser.get(f"{LIST}/{ids[0]}").text
    retired = browser.get(f"{LIST}/{ids[4]}")
    assert "Last change: evicted" in words_of(retired)
    assert "&lt;b&gt;wrong&lt;/b&gt;" in retired.text
    assert "<b>wrong" not in retired.text

    assert "0 running, 1 queued" in browser.text("/n/default/jobs")
    assert "To learn?" in browser.text("/n/default/jobs?state=queued")
    assert "No jobs in this state." in browser.text("/n/default/jobs?state=failed")
    assert "Held by nobody" in browser.text(f"/n/default/jobs/{job.id}")

    flow = browser.text("/n/default/flow")
    assert "All 3 uses of memories, 3 of them with a known outcome" in flow
    assert "memory 1 0 0 1 0" in flow
    assert "agreed 0 1 0 0 0" in flow

    assert "4 of 4 active memories" in browser.text("/n/default/map")
    assert browser.get("/n/default/map").text.count("<circle") == 4

    ledger = browser.text("/n/default/ledger")
    assert "evicted" in ledger
    assert ids[4] in ledger
    assert ids[3] not in browser.text("/n/default/ledger?kind=evicted")
    assert ids[3] not in browser.text("/n/default/ledger?actor=somebody")


def test_an_empty_bank_says_how_it_is_filled(local_bank: Bank) -> None:
    browser = Browser(local_bank)
    assert "No namespace yet: an agent makes one" in browser.text("/")
    assert "No namespace has that in its name." in browser.text("/?name=zebra")
    local_bank.bind("default", model_of(16))
    for path, words in (
        (LIST, "No memory yet. A question that is asked with learning on becomes a job"),
        (f"{LIST}?order=broken", "No memory broke an answer yet."),
        (f"{LIST}?state=active", "No memory is like that."),
        ("/n/default/jobs", "No jobs yet: every question that is asked with learning on"),
        ("/n/default/flow", "No question has used a memory yet"),
        ("/n/default/map", "No active memory yet."),
        ("/n/default/ledger", "Nothing has happened here yet."),
        ("/n/default/ledger?kind=evicted", "No such events."),
    ):
        assert words in browser.text(path), path


def test_an_event_leads_to_what_it_names(local_bank: Bank) -> None:
    local_bank.bind("default", model_of(16))
    local_bank.jobs.enqueue("default", "Q", task="math", model_id=model_of(16).id, recipe=RECIPE)
    lease = local_bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    memory = local_bank.publish(
        lease,
        trained(np.random.default_rng(0), 16),
        task="math",
        model=model_of(16),
        recipe=RECIPE,
        state=MemoryState.ACTIVE,
        reason=None,
    )
    browser = Browser(local_bank)
    path = f"{LIST}/{memory.id}"
    for page in (path, "/n/default/ledger"):
        history = browser.get(page).text.split("<tbody>")[-1]
        assert f'<a href="/n/default/jobs/{memory.job_id}">{memory.job_id}</a>' in history
    assert "done" in browser.text(f"/n/default/jobs/{memory.job_id}")


def test_a_memory_tells_whose_place_it_took(browser: Browser, local_bank: Bank, memory_ids: list[str]) -> None:
    old, new = memory_ids[:2]
    revision = local_bank.memory("default", old).revision
    local_bank.supersede("default", new, {old: revision}, actor="test", detail={"how": "by hand"})
    assert f"Took the place of {old}" in browser.text(f"{LIST}/{new}")
    assert f"supersedes {old}" in browser.text(f"{LIST}/{new}")
    page = browser.text(f"{LIST}/{old}")
    assert f"Its place was taken by {new}" in page
    assert "Undo: restore" in page
    assert browser.press(f"{LIST}/{old}", "restore").status_code == 303
    assert "Its place was taken" not in browser.text(f"{LIST}/{old}")


def test_pages_of_a_list_follow_one_another_and_lead_back(local_bank: Bank) -> None:
    fill(local_bank, "default", 70)
    browser = Browser(local_bank)
    expected = [str(n) for n in reversed(range(70))]
    path, seen, forwards = f"{LIST}?state=active", [], []
    while path:
        seen.append(questions_on(browser, path))
        forwards.append(path)
        found = re.search(r'rel="next" href="([^"]+)"', browser.get(path).text)
        path = found[1].replace("&amp;", "&") if found else ""
    assert [len(page) for page in seen] == [50, 20]
    assert [number for page in seen for number in page] == expected
    back = re.search(r'rel="prev" href="([^"]+)"', browser.get(forwards[-1]).text)
    assert back is not None
    assert questions_on(browser, back[1].replace("&amp;", "&")) == seen[0]


def test_pages_of_jobs_and_events(local_bank: Bank) -> None:
    fill(local_bank, "default", 60, at_once=True)
    for n in range(60):
        local_bank.jobs.enqueue("default", f"J{n}", task="math", model_id=model_of(16).id, recipe=RECIPE)
    browser = Browser(local_bank)
    for path, pattern, total in (
        ("/n/default/jobs", r"data-job=\"(job_\w+)\"", 60),
        ("/n/default/ledger", r'<td class="n">(\d+)</td>\s*<td class="t">', 60),
    ):
        first = browser.get(path).text
        found = re.search(r'rel="next" href="([^"]+)"', first)
        assert found is not None
        second = browser.get(found[1].replace("&amp;", "&")).text
        both = re.findall(pattern, first) + re.findall(pattern, second)
        assert len(both) == len(set(both)) == total
        assert 'rel="next"' not in second


def test_an_id_in_the_search_field_opens_the_memory(browser: Browser, memory_ids: list[str]) -> None:
    answer = browser.get(f"{LIST}?text={memory_ids[3]}")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{LIST}/{memory_ids[3]}")


def test_jobs_tell_their_progress_as_data(local_bank: Bank) -> None:
    local_bank.bind("default", model_of(16))
    browser = Browser(local_bank)
    job, _ = local_bank.jobs.enqueue("default", "Q", task="math", model_id=model_of(16).id, recipe=RECIPE)
    [queued] = browser.get("/n/default/jobs.json").json()["jobs"]
    assert (queued["state"], queued["done"], queued["can_cancel"]) == ("queued", 0, True)
    lease = local_bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    local_bank.jobs.heartbeat(lease, lease_seconds=60, progress={"step": 3, "steps": 10, "vote_share": 0.5})
    seen = browser.get(f"/n/default/jobs.json?job={job.id}").json()
    [running] = seen["jobs"]
    assert (running["state"], running["done"], running["steps"]) == ("running", 3, 10)
    assert running["progress"] == "step 3 of 10, vote share 50%"
    assert seen["unfinished"] == {"queued": 0, "running": 1}
    local_bank.jobs.fail(lease, "it broke", backoff_seconds=0, retry=False)
    [failed] = browser.get("/n/default/jobs.json?state=failed").json()["jobs"]
    assert (failed["state"], failed["reason"], failed["can_retry"]) == ("failed", "it broke", True)


def test_a_ledger_that_was_tampered_with_is_found(local_bank: Bank, memory_ids: list[str]) -> None:
    browser = Browser(local_bank)
    path = "/n/default/ledger"

    def verified() -> str:
        form = browser.form_on(path)
        assert browser.post(f"{path}/verify", {"form": form}).status_code == 303
        while browser.get(f"{path}/verify.json").json()["state"] == "running":
            pass
        return browser.text(path)

    assert "Whole: all 12 events follow from one another" in verified()
    with local_bank.database.write() as session:
        session.connection().exec_driver_sql("UPDATE events SET actor = 'nobody' WHERE revision = 7")
    assert "Broken at event 7: its content or its predecessor was altered" in verified()
    assert memory_ids[0] in browser.text(path)


def test_pages_are_fit_for_keyboards_and_screen_readers(browser: Browser, memory_ids: list[str]) -> None:
    """As far as the text shows it: a language, one first heading, labels, heads of columns, a skip link."""
    paths = [
        "/",
        LIST,
        f"{LIST}/{memory_ids[0]}",
        *(f"/n/default/{view}" for view in ("jobs", "flow", "map", "ledger")),
    ]
    for path in paths:
        text = browser.get(path).text
        assert '<html lang="en">' in text
        assert text.count("<h1") == 1, path
        assert text.index('href="#main"') < text.index("<header")
        for field in re.findall(r"<(?:input|select|textarea)[^>]*>", text):
            if 'type="hidden"' not in field:
                before = text[: text.index(field)]
                assert before.rindex("<label") > before.rfind("</label"), field
        for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
            assert "<caption" in table, path
            assert 'scope="col"' in table, path
        for picture in re.findall(r"<svg[^>]*>", text):
            assert "aria-label" in picture, path


def test_nothing_comes_from_elsewhere(browser: Browser, memory_ids: list[str]) -> None:
    for path in ("/", LIST, f"{LIST}/{memory_ids[0]}", "/n/default/map", "/static/page.js", "/static/page.css"):
        answer = browser.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http" not in answer.text.replace(str(browser.client.base_url), "")
        assert " style=" not in answer.text
        assert not re.search(r" on\w+=", answer.text)
