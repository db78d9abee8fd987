"""Takes the pictures of docs/web.md: ``python tests/integration/page_pictures.py --demo HOME --big HOME``.

``--demo``: where ``elm-agent demo`` kept its bank; the embedded model is opened for the pictures of vectors.
``--big``: a bank that ``python -m elm_agent.bench.page_speed`` filled; jobs and reviews are put into it, once.
Both are written to, so give copies. Needs Chromium and what ``elm-agent[dev]`` brings.
"""

from __future__ import annotations

import argparse
import io
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from elm_agent import Settings, open_bank
from elm_agent.api.access import Access, Holder
from elm_agent.api.serving import address, listen
from elm_agent.bench import filling
from elm_agent.records import AWAITS_REVIEW, MemoryRecord, MemoryState, Recipe, Review, Route
from elm_agent.runtime import open_model
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database
from elm_agent.web.app import create_app

OUT = Path(__file__).parents[2] / "docs" / "images"
WIDE, TELEPHONE = {"width": 1100, "height": 820}, {"width": 390, "height": 820}
COLOURS = 96
WIDTH = 64  # of the made-up model of page_speed
QUESTIONS = (
    "A train goes 60 km in 45 minutes; how far in 2 hours?",
    "What is 17 times 23?",
    "What is 144 divided by 12, plus 9?",
    "A box holds 12 eggs; how many boxes for 200?",
    "What is 15 percent of 80?",
    "If x + 9 = 31, what is x?",
    "How many edges has a cube?",
)


def add_work(bank: Bank) -> None:
    """Jobs: two done, one failed, cancelled and running each, two that wait. For review: a memory and an answer."""
    recipe = Recipe(steps=10, rollouts=8, virtual_tokens=filling.VIRTUAL_TOKENS)
    model, rng = filling.model_of(WIDTH), np.random.default_rng(5)

    def enqueue(question: str) -> str:
        return bank.jobs.enqueue("default", question, task="math", model_id=model.id, recipe=recipe)[0].id

    def begin(question: str) -> Any:
        enqueue(question)
        lease = bank.jobs.claim("worker", lease_seconds=1e6)
        assert lease is not None
        return lease

    def publish(question: str, **how: Any) -> MemoryRecord:
        made = filling.trained(rng, WIDTH)
        return bank.publish(begin(question), made, task="math", model=model, recipe=recipe, **how)

    done = publish(QUESTIONS[0], state=MemoryState.ACTIVE, reason=None)
    publish(QUESTIONS[1], state=MemoryState.CANDIDATE, reason=AWAITS_REVIEW, review=Review.WAITING)
    asked = {"question": "A train goes 80 km in 30 minutes; how far in 2 hours?", "similarity": 0.93}
    answers = {"answer": "160", "memory_answer": "320", "zero_shot_answer": "160"}
    why = {"route": Route.ZERO_SHOT, "reason": "the verifier prefers the memory's by 0.21", "review": Review.WAITING}
    bank.record_use(filling.use_of("default", done.id, **asked, **answers, **why))
    bank.jobs.fail(begin(QUESTIONS[2]), "the loss of step 4 is not finite", backoff_seconds=0, retry=False)
    bank.jobs.cancel("default", enqueue(QUESTIONS[3]))
    progress = {"step": 8, "steps": 10, "vote_share": 0.875}
    bank.jobs.heartbeat(begin(QUESTIONS[4]), lease_seconds=1e6, progress=progress)
    for question in QUESTIONS[5:]:
        enqueue(question)


@contextmanager
def served(bank: Bank, **options: Any) -> Iterator[str]:
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(bank, **options), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address(listening)
        finally:
            server.should_exit = True
            thread.join()


class Camera:
    """A tab; it opens a view, where a path is given, and keeps its picture in few colours."""

    def __init__(self, browser: Browser, url: str, *, scheme: Any = "light", size: Any = WIDE) -> None:
        self.page: Page = browser.new_page(base_url=url, viewport=size, color_scheme=scheme)
        self.page.set_default_timeout(300_000)

    def take(self, name: str, path: str | None = None, *, whole: bool = False) -> None:
        if path is not None:
            self.page.goto(path)
        self.page.evaluate("scrollTo(0, 0)")
        data = self.page.screenshot(full_page=whole)
        file = OUT / f"web-{name}.png"
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        few = picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(file, optimize=True)
        print(f"{file.name}: {file.stat().st_size:,} bytes")


def of_the_big_bank(browser: Browser, bank: Bank) -> None:
    if not bank.jobs.list("default", limit=1):
        add_work(bank)
    failed = next(job for job in bank.jobs.list("default", limit=50) if job.question == QUESTIONS[2])
    with served(bank) as url:
        camera = Camera(browser, url)
        camera.take("memories", "/n/default/memories?order=used")
        camera.take("map", "/n/default/map")
        camera.take("jobs", "/n/default/jobs")
        camera.take("job", f"/n/default/jobs/{failed.id}")
        camera.take("review", "/n/default/review")
        Camera(browser, url, size=TELEPHONE).take("telephone", "/n/default/memories")


def of_the_demo(browser: Browser, bank: Bank, settings: Settings) -> None:
    best = most_fixed(bank)
    of, memory = f"/n/{best.namespace}", f"/n/{best.namespace}/memories/{best.id}"
    with served(bank, tokens=Access({"t" * 24: Holder()})) as url:
        Camera(browser, url).take("login", "/login")
    with served(bank, open_model=lambda: open_model(settings)) as url:
        camera = Camera(browser, url)
        camera.take("overview", "/")
        camera.take("memory", memory, whole=True)
        camera.take("flow", f"{of}/flow")
        Camera(browser, url, scheme="dark").take("dark", memory)
        camera.page.goto(f"{of}/ledger")
        camera.page.get_by_role("button", name="Verify").click()
        camera.page.get_by_text("Whole: all").wait_for()
        camera.take("ledger")
        camera.page.goto(f"{memory}/vectors")
        camera.page.get_by_role("button", name="Open the model").click()
        camera.page.get_by_role("button", name="Ask with it").click()
        camera.page.get_by_text("With the memory:").wait_for()
        camera.take("vectors", whole=True)


def most_fixed(bank: Bank) -> MemoryRecord:
    found = [memory for info in bank.namespaces() for memory in bank.memories(info.name)]
    return max(found, key=lambda memory: (memory.fixed, memory.uses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--big", type=Path, required=True)
    chosen = parser.parse_args()
    settings = Settings(home=chosen.demo, index="exact")
    url = Settings(home=chosen.big).resolved_database_url
    with (
        sync_playwright() as playwright,
        closing(Bank(Database.open(url), filling.NoTensors(), index="exact")) as big,
        closing(open_bank(settings, owns_index=False)) as demo,
    ):
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        of_the_big_bank(browser, big)
        of_the_demo(browser, demo, settings)
        browser.close()


if __name__ == "__main__":
    main()
