"""The page in a real browser: Debian's Chromium, driven by Playwright. Whatever the browser complains of fails."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elm_agent.api.access import Access, Holder
from elm_agent.api.serving import address, listen
from elm_agent.bench.filling import made_up, model_of, use_of
from elm_agent.records import MemoryState, Recipe, UseOutcome
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install 'elm-agent[dev]'"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: apt-get install --no-install-recommends chromium"
)
WIDTH = 16
TOKEN = "a token of the tests, long"
PATIENCE = 60_000  # milliseconds


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    made = Bank(Database.open(f"sqlite:///{tmp_path / 'bank.sqlite'}"), LocalTensors(tmp_path / "t"), index="exact")
    made.bind("default", model_of(WIDTH))
    items = [
        replace(item, question=f"What is {n} times {'7' if n % 2 else 'eleven'}?")
        for n, item in enumerate(made_up(np.random.default_rng(0), 120, WIDTH))
    ]
    ids = [memory_id for memory_id, _ in made.adopt("default", items, actor="test")]
    for n in range(30):
        made.record_use(use_of("default", ids[n % 3], outcome=[UseOutcome.FIXED, UseOutcome.BOTH_RIGHT][n % 2]))
    yield made
    made.close()


@pytest.fixture
def served(request: pytest.FixtureRequest, bank: Bank) -> Iterator[str]:
    """The address of the page, served as ``elm-agent web`` does it, from a thread. A parameter is its token."""
    import uvicorn

    from elm_agent.web.app import create_app

    token = getattr(request, "param", None)
    app = create_app(bank, tokens=None if token is None else Access({token: Holder()}))
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield address(listening)
        server.should_exit = True
        thread.join()


@pytest.fixture
def page(served: str) -> Iterator[Any]:
    """A tab. What the browser complains of, and whatever it asks for elsewhere, is a failure."""
    complaints: list[str] = []
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        tab = browser.new_context(base_url=served, viewport={"width": 1200, "height": 900}).new_page()
        tab.set_default_timeout(PATIENCE)
        tab.on("console", lambda message: complaints.append(message.text) if _is_complaint(message) else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda asked: None if asked.url.startswith(served) else complaints.append(asked.url))
        yield tab
        browser.close()
    assert complaints == []


def _is_complaint(message: Any) -> bool:
    asked_for = ("status of 409", "status of 404")  # by tests
    return message.type == "error" and not any(status in message.text for status in asked_for)


def test_find_a_memory_evict_it_and_take_it_back(page: Any, bank: Bank) -> None:
    page.goto("/")
    page.get_by_role("link", name="default", exact=True).click()
    page.wait_for_url(re.compile("/memories$"))
    assert page.get_by_role("row").count() == 51  # and the head
    page.get_by_role("link", name="Next").click()
    page.wait_for_url(re.compile("after="))
    page.get_by_label("State").select_option("retired")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("No memory is like that.").wait_for()
    page.get_by_label("State").select_option("active")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile("state=active"))
    assert page.get_by_role("row").count() == 51
    page.get_by_label("Question contains").fill("is 37 TIMES")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile("text="))
    assert page.get_by_role("row").count() == 2
    page.get_by_role("link", name="What is 37 times 7?").click()
    page.get_by_label("Reason").fill("harmful")
    page.get_by_role("button", name="Evict").click()
    page.get_by_text("Last change: evicted").wait_for()
    memory_id = page.url.split("#")[0].rpartition("/")[2]
    assert bank.memory("default", memory_id).state is MemoryState.RETIRED
    page.get_by_role("button", name="Undo: restore").click()
    page.get_by_text("Last change: restored").wait_for()
    assert bank.memory("default", memory_id).state is MemoryState.ACTIVE
    page.get_by_role("link", name="Ledger").click()
    page.get_by_role("heading", level=1, name="Ledger").wait_for()
    assert page.get_by_role("cell", name="web page").count() == 2


def test_two_tabs_on_one_memory(page: Any, bank: Bank) -> None:
    memory_id = bank.memories("default", limit=1)[0].id
    page.goto(f"/n/default/memories/{memory_id}")
    other = page.context.new_page()
    other.goto(f"/n/default/memories/{memory_id}")
    other.get_by_role("button", name="Pin").click()
    other.get_by_text("Last change: pinned").wait_for()
    with page.expect_response(lambda answer: answer.request.method == "POST") as posted:
        page.evaluate("document.querySelector('button[formaction$=quarantine]').click()")
    assert posted.value.status == 409
    page.get_by_role("alert").filter(has_text="nothing was done").wait_for()
    assert bank.memory("default", memory_id).state is MemoryState.ACTIVE


def test_jobs_keep_up_with_their_worker(page: Any, bank: Bank) -> None:
    recipe = Recipe(steps=4)
    bank.jobs.enqueue("default", "How far is it?", task="math", model_id=model_of(WIDTH).id, recipe=recipe)
    page.goto("/n/default/jobs")
    page.get_by_text("0 running, 1 queued").wait_for()
    lease = bank.jobs.claim("worker", lease_seconds=600)
    assert lease is not None
    for step in (1, 3):
        bank.jobs.heartbeat(lease, lease_seconds=600, progress={"step": step, "steps": 4, "vote_share": step / 4})
        page.get_by_text(f"step {step} of 4, vote share {step / 4:.0%}").wait_for()
        assert page.locator("tbody progress").first.evaluate("bar => bar.value / bar.max") == step / 4
    bank.jobs.enqueue("default", "And this?", task="math", model_id=model_of(WIDTH).id, recipe=recipe)
    page.get_by_role("link", name="And this?").wait_for()  # a row that was not there
    bank.jobs.fail(lease, "the model went away", backoff_seconds=0, retry=False)
    page.get_by_text("the model went away").wait_for()
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(re.compile("/jobs/job_"))
    page.get_by_text("queued", exact=True).wait_for()


def test_every_view_draws_and_the_keyboard_reaches_it(page: Any, bank: Bank) -> None:
    memory_id = bank.memories("default", limit=1, order="-uses")[0].id
    page.goto("/n/default/memories")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto("/n/default/map")
    assert page.locator("svg circle").count() == 120
    page.locator("svg a").first.focus()
    page.keyboard.press("ArrowRight")
    second = page.locator("svg a").nth(1).locator("title").text_content()
    page.locator("[data-point]").filter(has_text=second).wait_for()
    page.keyboard.press("Enter")
    page.get_by_role("heading", level=1, name=second).wait_for()
    page.goto("/n/default/flow")
    assert page.locator("svg path").count() == 2
    assert page.locator("svg polyline").count() == 2
    page.goto(f"/n/default/memories/{memory_id}")
    assert page.locator("svg polyline").count() == 2
    page.goto("/n/default/ledger")
    page.get_by_role("button", name="Verify the chain").click()
    page.get_by_text("Whole: all").wait_for()


@pytest.mark.parametrize("served", [TOKEN], indirect=True)
def test_one_signs_in_with_the_keyboard(page: Any) -> None:
    page.goto("/n/default/memories")
    page.wait_for_url(re.compile("/login"))
    assert page.evaluate(_NAMELESS) == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(_DULL) == []
    assert page.evaluate("document.activeElement.name") == "token"
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_role("link", name="default", exact=True).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_paper(page: Any, bank: Bank, scheme: str) -> None:
    """A contrast of 4.5 to 1 for every text of the most colourful pages (WCAG 2.2, success criterion 1.4.3)."""
    page.emulate_media(color_scheme=scheme)
    for path in every_view(bank):
        page.goto(path)
        assert page.evaluate(_DULL) == [], path


def test_every_view_fits_a_telephone_and_names_its_controls(page: Any, bank: Bank) -> None:
    """What is too wide scrolls by itself, not the page; whatever can be pressed or filled in has a name."""
    page.set_viewport_size({"width": 360, "height": 740})
    for path in every_view(bank):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        assert page.evaluate(_NAMELESS) == [], path


def test_the_tab_key_goes_on_as_one_reads_and_shows_where_it_is(page: Any, bank: Bank) -> None:
    page.goto(f"/n/default/memories/{bank.memories('default', limit=1, order='-uses')[0].id}")
    places = []
    for _ in range(12):
        page.keyboard.press("Tab")
        place, seen = page.evaluate(_FOCUS)
        assert seen, place
        places.append(place)
    assert places == sorted(set(places))


def every_view(bank: Bank) -> list[str]:
    """Their addresses, and one of none, in a bank with a pinned memory and with jobs of several colours."""
    of = "/n/default"
    memory_id = bank.memories("default", limit=1, order="-uses")[0].id
    bank.pin("default", memory_id, True, actor="test")
    for question in ("How far is it?", "How long is it?", "How high is it?"):
        job, _ = bank.jobs.enqueue(
            "default", question, task="math", model_id=model_of(WIDTH).id, recipe=Recipe(steps=4)
        )
    for ended in (True, False):
        lease = bank.jobs.claim("worker", lease_seconds=600)
        assert lease is not None
        if ended:
            bank.jobs.fail(lease, "the model went away", backoff_seconds=0, retry=False)
    views = ["memories", "review", f"memories/{memory_id}", f"memories/{memory_id}/vectors", "memories?text=zebra"]
    views += ["jobs", f"jobs/{job.id}", "flow", "map", "ledger"]
    return ["/", *(f"{of}/{view}" for view in views), f"{of}/nothing"]


_DULL = """() => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const paper = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = parts(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const dull = [];
  for (const element of document.querySelectorAll("main *, header *, footer")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = parts(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(paper(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) dull.push(element.tagName + " " + element.textContent.trim().slice(0, 40));
  }
  return dull;
}"""

_NAMELESS = """() => [...document.querySelectorAll("a, button, input, select, textarea, summary, progress, svg")]
  .filter((at) => at.checkVisibility() && at.type !== "hidden" && !at.closest("svg a > *"))
  .filter((at) => {
    const others = (at.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id));
    const named = [at, ...(at.labels || []), ...others].map((one) => one && one.textContent);
    return ![at.getAttribute("aria-label"), ...named].some((name) => name && name.trim());
  })
  .map((at) => at.outerHTML.slice(0, 80))"""

_FOCUS = """() => {
  const at = document.activeElement, style = getComputedStyle(at);
  const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && at.checkVisibility();
  return [[...document.querySelectorAll("*")].indexOf(at), seen];
}"""
