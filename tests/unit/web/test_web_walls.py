"""Who is let in, to what, and from where: tokens, namespaces, forged forms, foreign hosts, too much of anything."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from page_helpers import Browser, fill, words_of

from elm_agent.api.access import Access, Holder
from elm_agent.records import MemoryState
from elm_agent.storage.bank import Bank
from elm_agent.storage.vault.encrypted import EncryptedVault
from elm_agent.storage.vault.master_keys import from_function
from elm_agent.web.sessions import Sessions
from elm_agent.web.walls import Walls

LIST = "/n/default/memories"
TOKEN = "t" * 24
OTHER = "o" * 24


def guarded(bank: Bank, **options: Any) -> Browser:
    tokens = Access({TOKEN: Holder(), OTHER: Holder(("other",))})
    return Browser(bank, tokens=tokens, **options)


def sign_in(browser: Browser, token: str) -> int:
    form = re.search(r'name="form" value="(\w+)"', browser.get("/login").text)
    assert form is not None
    return browser.post("/login", {"form": form[1], "token": token}).status_code


# --- forms ----------------------------------------------------------------------------------------------


def test_a_form_of_another_site_does_nothing(browser: Browser, local_bank: Bank, memory_ids: list[str]) -> None:
    path = f"{LIST}/{memory_ids[0]}"
    revision = local_bank.memory("default", memory_ids[0]).revision
    fields = {"form": browser.form_on(path), "revision": revision}
    another_program = "http://localhost:9999"
    for origin in ("http://evil.example", another_program, "null", "", "http://localhost:8010.evil.example"):
        answer = browser.post(f"{path}/evict", fields, origin=origin)
        assert answer.status_code == 403, origin
        assert "nothing was done" in words_of(answer)
    assert local_bank.memory("default", memory_ids[0]).state is MemoryState.ACTIVE


def test_a_form_without_the_sessions_own_token_does_nothing(
    browser: Browser, local_bank: Bank, memory_ids: list[str]
) -> None:
    path = f"{LIST}/{memory_ids[0]}"
    browser.get(path)
    for form in ({}, {"form": ""}, {"form": "0" * 64}, {"form": "é"}, {"form": "x" * 5000}):
        answer = browser.post(f"{path}/evict", {**form, "revision": 1})
        assert answer.status_code == 403, form
        assert "the form is of another session" in words_of(answer)
    assert local_bank.memory("default", memory_ids[0]).state is MemoryState.ACTIVE


def test_a_form_of_another_session_does_nothing(local_bank: Bank, memory_ids: list[str]) -> None:
    mine = Browser(local_bank)
    form = mine.form_on(f"{LIST}/{memory_ids[0]}")
    mine.client.cookies.clear()
    assert mine.post(f"{LIST}/{memory_ids[0]}/evict", {"form": form, "revision": 1}).status_code == 403


def test_a_change_is_never_made_by_a_link(browser: Browser, memory_ids: list[str]) -> None:
    assert browser.get(f"{LIST}/{memory_ids[0]}/evict").status_code == 405


# --- names and amounts --------------------------------------------------------------------------------------


def test_a_foreign_name_is_not_served(browser: Browser) -> None:
    """DNS rebinding makes a browser ask this machine under a name of the attacker."""
    for host in ("evil.example", "evil.example:8010", "", "localhost.evil.example", "[evil", "a@b"):
        answer = browser.get("/", headers={"host": host})
        assert answer.status_code == 403, host
        assert "not served under that name" in words_of(answer)
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8010", "[::1]:8010", "192.168.0.7"):
        assert browser.get("/", headers={"host": host}).status_code == 200, host


def test_too_much_is_refused(browser: Browser, memory_ids: list[str]) -> None:
    assert browser.get(f"{LIST}?text={'x' * 5000}").status_code == 414
    assert browser.get("/n/" + "x" * 600).status_code == 414
    form = browser.form_on(LIST + "/" + memory_ids[0])
    answer = browser.post(f"{LIST}/{memory_ids[0]}/evict", {"form": form, "reason": "x" * 30_000})
    assert answer.status_code == 413
    answer = browser.post(f"{LIST}/{memory_ids[0]}/evict", {"form": form, "revision": 1, "reason": "x" * 3000})
    assert answer.status_code == 400
    assert "reason has 3000 characters" in words_of(answer)


def test_what_is_no_form_is_refused(browser: Browser, local_bank: Bank, memory_ids: list[str]) -> None:
    path = f"{LIST}/{memory_ids[0]}"
    form = browser.form_on(path)
    for body in (b"\xff\x00\xfe", b"&" * 15_000, f"form={form}".encode("utf-16")):
        answer = browser.client.post(f"{path}/evict", content=body, headers={"origin": "http://localhost:8010"})
        assert answer.status_code in (400, 403), body[:20]
    answer = browser.post(f"{path}/evict", {"form": form, "revision": 1, "reason": "nul \x00 in it"})
    assert answer.status_code == 400
    assert "characters that no database stores" in words_of(answer)
    assert local_bank.memory("default", memory_ids[0]).state is MemoryState.ACTIVE


# --- addresses that lead nowhere ----------------------------------------------------------------------------


NOWHERE = [
    ("/nothing", 404),
    ("/n/nowhere/memories", 404),
    ("/n/%00/memories", 404),
    ("/n/..%2f..%2fetc/memories", 404),
    ("/static/../app.py", 404),
    (f"{LIST}/mem_0", 404),
    (f"{LIST}/%00", 404),
    (f"{LIST}/{'m' * 70}", 404),
    (f"{LIST}/mem_0/vectors", 404),
    ("/n/default/jobs/job_0", 404),
    ("/n/default/jobs.json?job=job_0", 404),
    ("/n/default/jobs.json?job=%00", 404),
    ("/n/default/jobs?after=1~x", 400),
    ("/n/default/jobs?after=x~job_0", 400),
    ("/n/default/jobs?state=tired", 400),
    (f"{LIST}?state=purged", 400),
    (f"{LIST}?order=best", 400),
    (f"{LIST}?pinned=perhaps", 400),
    (f"{LIST}?after=x", 400),
    (f"{LIST}?order=changed&after={'9' * 40}~mem_0", 400),
    (f"{LIST}?after=1000000~a&before=1000000~b", 400),
    (f"{LIST}?text=%00", 400),
    ("/n/default/flow?newest=3", 400),
    ("/n/default/flow?newest=-1", 400),
    ("/n/default/ledger?kind=stolen", 400),
    ("/n/default/ledger?before=99999999999999999999", 400),
]


def test_an_address_that_cannot_be_is_one_sentence(browser: Browser, memory_ids: list[str]) -> None:
    assert memory_ids
    for path, code in NOWHERE:
        answer = browser.get(path)
        assert answer.status_code == code, path
        if ".json" in path:
            assert set(answer.json()) == {"problem"}
        else:
            assert answer.text.count('<p role="alert">') == 1, path


def test_an_unknown_action_is_nothing(browser: Browser, memory_ids: list[str]) -> None:
    assert browser.press(f"{LIST}/{memory_ids[0]}", "explode").status_code == 404
    answer = browser.post(f"{LIST}/{memory_ids[0]}/pin", {"form": browser.form_on(LIST + "/" + memory_ids[0])})
    assert answer.status_code == 400
    assert "does not say which revision" in words_of(answer)


# --- tokens -------------------------------------------------------------------------------------------------


def test_without_a_token_there_is_only_the_way_to_sign_in(local_bank: Bank, memory_ids: list[str]) -> None:
    browser = guarded(local_bank)
    for path in ("/", LIST, f"{LIST}/{memory_ids[0]}", "/n/nowhere/memories"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
    assert browser.get("/n/default/jobs.json").status_code == 403
    assert browser.post(f"{LIST}/{memory_ids[0]}/evict", {"revision": 1}).status_code == 403
    assert browser.get("/static/page.css").status_code == 200


def test_the_right_token_signs_in_and_signing_out_ends_it(local_bank: Bank, memory_ids: list[str]) -> None:
    browser = guarded(local_bank)
    for wrong in ("", "t", TOKEN + "t", "é" * 24):
        assert sign_in(browser, wrong) == 403
    assert browser.get("/").status_code == 303
    assert sign_in(browser, TOKEN) == 303
    assert "default" in browser.text("/")
    assert browser.press(f"{LIST}/{memory_ids[0]}", "pin").status_code == 303
    kept = dict(browser.client.cookies)
    assert browser.post("/logout", {"form": browser.form_on("/")}).status_code == 303
    browser.client.cookies.clear()
    browser.client.cookies.update(kept)  # somebody had copied the cookie
    assert browser.get("/").status_code == 303


def test_a_token_shows_its_namespaces_only(local_bank: Bank, memory_ids: list[str]) -> None:
    [other] = fill(local_bank, "other", 1)
    browser = guarded(local_bank)
    sign_in(browser, OTHER)
    overview = browser.text("/")
    assert "other" in overview
    assert "default" not in overview
    unseen, missing = browser.get(f"{LIST}/{memory_ids[0]}"), browser.get(f"/n/nowhere/memories/{memory_ids[0]}")
    assert unseen.status_code == missing.status_code == 404
    assert words_of(unseen).replace("default", "nowhere") == words_of(missing)
    form = browser.form_on(f"/n/other/memories/{other}")
    assert browser.post(f"{LIST}/{memory_ids[0]}/evict", {"form": form, "revision": 1}).status_code == 404
    assert browser.get(f"/n/other/memories/{memory_ids[0]}").status_code == 404


def test_what_is_only_read_cannot_be_changed(local_bank: Bank, memory_ids: list[str]) -> None:
    fill(local_bank, "own", 1)
    browser = Browser(local_bank, walls=Walls(seen=frozenset({"own", "default"}), changed=frozenset({"own"})))
    path = f"{LIST}/{memory_ids[0]}"
    assert "This page only reads the namespace." in browser.text(path)
    own = local_bank.memories("own")[0]
    form = browser.form_on(f"/n/own/memories/{own.id}")
    answer = browser.post(f"{path}/pin", {"form": form, "revision": 1})
    assert answer.status_code == 403
    assert browser.press(f"/n/own/memories/{own.id}", "pin").status_code == 303


def test_the_cookie_is_out_of_reach_and_not_sent_along(local_bank: Bank) -> None:
    browser = guarded(local_bank)
    cookie = browser.get("/login").headers["set-cookie"]
    for word in ("HttpOnly", "SameSite=Strict", "Path=/"):
        assert word in cookie
    form = browser.form_on("/login")
    answer = browser.post("/login", {"form": form, "token": TOKEN}, origin="https://localhost:8010")
    assert "Secure" in answer.headers["set-cookie"]  # a proxy ended TLS


def test_a_link_on_another_site_neither_signs_out_nor_shows(local_bank: Bank) -> None:
    """A strict cookie does not come along; a new one must not take its place."""
    browser = guarded(local_bank)
    answer = browser.get("/", headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert 'href="/"' in answer.text
    deeper = browser.get("http://localhost:8010//evil.example/n?x=1", headers={"sec-fetch-site": "cross-site"})
    assert 'href="/evil.example/n?x=1"' in deeper.text


def test_cookies_that_were_tampered_with_are_nobodys() -> None:
    sessions = Sessions(Access({TOKEN: Holder()}))
    session = sessions.sign_in(TOKEN)
    assert session is not None
    cookie = sessions.cookie(session)
    found = sessions.read(cookie)
    assert found is not None
    assert found.holder == Holder()
    nonce, expires, signature = cookie.split(".")
    longer = f"{nonce}.{int(expires) + 1}.{signature}"
    for forged in (longer, cookie[:-1], cookie + "0", f".{expires}.{signature}", "", "..", "é", "x" * 10_000):
        assert sessions.read(forged) is None, forged
    assert Sessions(Access({TOKEN: Holder()})).read(cookie) is None  # another process


def test_a_session_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(Access())
    cookie = sessions.cookie(sessions.begin())
    assert sessions.read(cookie) is not None
    later = time.time() + 13 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert sessions.read(cookie) is None


def test_a_sealed_bank_without_its_key_says_so(local_bank: Bank) -> None:
    vault = EncryptedVault(local_bank.database, from_function(lambda: b"1" * 32))
    sealing = Bank(local_bank.database, local_bank.tensors, index="exact", vault=vault)
    fill(sealing, "sealed", 3)
    browser = Browser(local_bank)
    for path in ("/n/sealed/memories", "/n/sealed/map"):
        answer = browser.get(path)
        assert answer.status_code == 503, path
        assert "is sealed" in words_of(answer)
    assert "sealed" in browser.text("/")
    assert "What is 2 times 7?" in Browser(sealing).text("/n/sealed/memories?text=IS+2")
