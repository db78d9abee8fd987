"""Every verb over HTTP does what its function does, and says in one sentence why it cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_calls import Open, failure
from fastapi.testclient import TestClient

from elm_agent import JobState, MemoryState, Runtime
from elm_agent.api.http import make_app
from elm_agent.errors import IndexUnavailable, ModelError, StorageError
from elm_agent.testing.doubles import FakeModel

FIRST = {"question": "What is 7 times 8?"}


def ask(client: TestClient, question: str = FIRST["question"], **more: Any) -> dict[str, Any]:
    reply = client.post("/v1/default/ask", json={"question": question, **more})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_a_question_is_answered_and_learnt(client: TestClient, runtime: Runtime) -> None:
    answer = ask(client)
    assert (answer["route"], answer["memory_id"]) == ("no_memory", None)
    assert answer["candidates"]["zero_shot"]["text"] == answer["text"]
    job = runtime.bank.jobs.get("default", answer["job_id"])
    again = ask(client, "What is 7 times 9?", subject="ann", min_similarity=-1, learn=False)
    assert (again["memory_id"], again["job_id"]) == (job.memory_id, None)
    (use,) = runtime.bank.uses("default")
    assert (use.id, use.subject) == (again["use_id"], "ann")


def test_a_threshold_is_kept_to(client: TestClient) -> None:
    ask(client)
    answer = ask(client, "How many legs has a spider?", min_similarity=1.0)
    assert answer["route"] == "no_memory"
    assert "threshold" in answer["reason"]


def test_the_stream_tells_what_happens_and_ends_with_the_answer(client: TestClient) -> None:
    ask(client)
    with client.stream("POST", "/v1/default/ask/stream", json=FIRST) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(reply.iter_text()).strip().split("\n\n")
    events = [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in
              (block.split("\n") for block in blocks)]  # fmt: skip
    names = [name for name, _ in events]
    assert names[0] == "elm.retrieved"
    assert sorted(names[1:3]) == ["elm.candidate", "elm.candidate"]
    assert names[-1] == "answer"
    assert events[-1][1]["text"] == ask(client)["text"]


def test_recall_finds_the_nearest_first_and_notes_no_use(client: TestClient, runtime: Runtime) -> None:
    for question in ("What is 7 times 8?", "What is 7 times 9?", "How many legs has a spider?"):
        ask(client, question, learn=True)
    uses = len(runtime.bank.uses("default"))
    reply = client.post("/v1/default/recall", json={"question": "What is 7 times 8?", "limit": 2})
    found = reply.json()
    assert [hit["memory"]["question"] for hit in found] == ["What is 7 times 8?", "What is 7 times 9?"]
    assert found[0]["similarity"] == pytest.approx(1.0)
    assert client.post("/v1/default/recall", json={"question": "x", "min_similarity": 1.0}).json() == []
    assert len(runtime.bank.uses("default")) == uses


def test_memories_are_listed_page_by_page(client: TestClient, runtime: Runtime) -> None:
    for number in range(3):
        ask(client, f"What is {number} plus 1?")
    every = client.get("/v1/default/memories").json()
    assert [memory["question"] for memory in every] == [f"What is {number} plus 1?" for number in (2, 1, 0)]
    assert client.get("/v1/default/memories?limit=1&offset=1").json() == [every[1]]
    runtime.bank.transition("default", every[0]["id"], MemoryState.RETIRED, actor="test", reason="by a test")
    retired = client.get("/v1/default/memories?state=retired").json()
    assert [(memory["id"], memory["reason"]) for memory in retired] == [(every[0]["id"], "by a test")]
    assert client.get(f"/v1/default/memories/{every[1]['id']}").json() == every[1]


def test_why_tells_votes_curve_uses_and_history(client: TestClient) -> None:
    ask(client)
    memory_id = ask(client, "What is 7 times 9?", learn=False)["memory_id"]
    told = client.get(f"/v1/default/memories/{memory_id}/why").json()
    assert told["memory"]["id"] == memory_id
    assert len(told["episode"]["curve"]) == 2
    assert told["episode"]["rollouts"] == []
    assert [use["memory_id"] for use in told["uses"]] == [memory_id]
    assert told["events"][0]["kind"] == "created"
    told = client.get(f"/v1/default/memories/{memory_id}/why?rollouts=true&uses=1").json()
    assert len(told["episode"]["rollouts"]) > 3


def test_feedback_is_noted_with_the_use(client: TestClient, runtime: Runtime) -> None:
    ask(client)
    answer = ask(client, "What is 7 times 9?", learn=False)
    path = f"/v1/default/uses/{answer['use_id']}/feedback"
    report = client.post(path, json={"verdict": "right", "answer": answer["answer"]}).json()
    assert (report["feedback"], report["memory_id"], report["recorded"]) == ("right", answer["memory_id"], True)
    assert client.post(path, json={"verdict": "right", "answer": answer["answer"]}).json()["recorded"] is False
    changed = client.post(path, json={"verdict": "wrong"}).json()
    assert (changed["feedback"], changed["replaced"]) == ("wrong", "right")
    (use,) = runtime.bank.uses("default")
    assert use.feedback == "wrong"
    failure(client.post(path, json={"verdict": "wrong", "answer": answer["answer"]}), 422)
    failure(client.post(path, json={"verdict": "maybe"}), 422)
    failure(client.post(path, json={"verdict": "wrong", "answer": "a\x00"}), 422)
    failure(client.post("/v1/default/uses/use_none/feedback", json={"verdict": "right"}), 404)
    client.post("/v1/other/ask", json=FIRST)
    failure(client.post(path.replace("default", "other"), json={"verdict": "right"}), 404)


def test_an_answer_is_explained_when_asked(client: TestClient) -> None:
    ask(client)
    assert ask(client, "What is 7 times 9?")["explanation"] is None
    assert ask(client, "What is 7 times 9?", explain=True)["explanation"]


def test_a_tier_says_what_an_answer_may_cost(client: TestClient) -> None:
    ask(client)
    near: dict[str, Any] = {"learn": False, "explain": True, "min_similarity": -1}
    budgets = {
        tier: ask(client, "What is 7 times 9?", tier=tier, **near)["explanation"]["budget"]
        for tier in ("cheap", "normal", "thorough")
    }
    assert [budget["tier"] for budget in budgets.values()] == ["normal", "normal", "thorough"]
    assert budgets["cheap"]["reason"].startswith("cheap was asked for, but the memory has 0 uses")
    assert budgets["thorough"]["vote"]["voters"] > 2
    failure(client.post("/v1/default/ask", json={**FIRST, "tier": "lavish"}), 422)
    with client.stream("POST", "/v1/default/ask/stream", json={**FIRST, **near, "tier": "thorough"}) as reply:
        assert '"voters"' in "".join(reply.iter_text())


def test_a_memory_that_is_shared_is_explained_where_it_is_used(opened: Open) -> None:
    with TestClient(make_app(opened(namespace="common"))) as first:
        first.post("/v1/common/ask", json=FIRST)
    client = TestClient(make_app(opened(shared_namespaces=["common"], learn=False)))
    answer = ask(client)
    assert answer["memory_namespace"] == "common"
    told = client.get(f"/v1/default/memories/{answer['memory_id']}/why").json()
    assert told["memory"]["namespace"] == "common"
    assert [use["namespace"] for use in told["uses"]] == ["default"]
    assert client.get("/v1/default/memories").json() == []


def test_jobs_are_listed_cancelled_and_retried(opened: Open) -> None:
    runtime = opened(worker={"mode": "external"})
    client = TestClient(make_app(runtime))
    job_id = ask(client)["job_id"]
    assert [job["state"] for job in client.get("/v1/default/jobs").json()] == ["queued"]
    assert client.post(f"/v1/default/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    assert client.get("/v1/default/jobs?state=queued").json() == []
    assert client.post(f"/v1/default/jobs/{job_id}/retry").json()["state"] == "queued"
    failure(client.post(f"/v1/default/jobs/{job_id}/retry"), 422)
    assert client.get(f"/v1/default/jobs/{job_id}").json()["id"] == job_id
    assert runtime.bank.jobs.get("default", job_id).state is JobState.QUEUED


def test_namespaces_and_health(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert [(shown["name"], shown["model"]) for shown in client.get("/v1/namespaces").json()] == [("default", "fake")]


def test_a_namespace_comes_into_being_with_its_first_question(client: TestClient) -> None:
    failure(client.get("/v1/new/memories"), 404)
    failure(client.post("/v1/new/recall", json=FIRST), 404)
    failure(client.get("/v1/new/jobs"), 404)
    assert client.post("/v1/new/ask", json=FIRST).status_code == 200
    assert len(client.get("/v1/new/memories").json()) == 1
    assert client.get("/v1/default/memories").json() == []


def test_an_id_of_another_namespace_is_unknown(client: TestClient) -> None:
    answer = ask(client)
    memory_id = client.get("/v1/default/memories").json()[0]["id"]
    client.post("/v1/other/ask", json=FIRST)
    for path in (f"memories/{memory_id}", f"memories/{memory_id}/why", f"jobs/{answer['job_id']}"):
        assert client.get(f"/v1/default/{path}").status_code == 200
        assert failure(client.get(f"/v1/other/{path}"), 404)["type"] == "NotFound"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (IndexUnavailable("the index is away"), 503, "the index is away"),
        (StorageError("the disk is full"), 503, "the disk is full"),
        (ModelError("the model is lost"), 500, "the model is lost"),
        (RuntimeError("secret of the house"), 500, "an unexpected failure"),
    ],
)
def test_a_failure_of_the_server_is_told_by_its_kind(
    client: TestClient, runtime: Runtime, error: Exception, status: int, said: str
) -> None:
    model = runtime.model
    assert isinstance(model, FakeModel)
    model.zero_shot_error = error
    told = failure(client.post("/v1/default/ask", json=FIRST), status)
    assert told["type"] == type(error).__name__
    assert said in told["message"]
    assert "secret" not in told["message"]
    with client.stream("POST", "/v1/default/ask/stream", json=FIRST) as reply:
        text = "".join(reply.iter_text())
    assert text.count("event: error") == 1
    assert said in text
    assert "event: answer" not in text
