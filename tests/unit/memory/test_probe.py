"""The probe and the gate on a real bank, with a model that follows a script."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from elm_agent.adapters import Weights
from elm_agent.errors import InputError, JobCancelled
from elm_agent.memory.admission import ProbeResult, Rules
from elm_agent.memory.gate import Gate
from elm_agent.memory.learn import learn
from elm_agent.memory.probe import Probe, Reference
from elm_agent.memory.worker import Worker
from elm_agent.protocols import GenerationRequest
from elm_agent.records import EventKind, Generation, JobRecord, JobState, KeyKind, MemoryRecord, MemoryState, Recipe
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.tasks import get_task
from elm_agent.testing.doubles import FakeModel, FakeTrainer, Reply, fake_fingerprint

Enqueue = Callable[..., JobRecord]
Make = Callable[..., Worker]
PAST = ["What is 7 times 8?", "What is 7 times 9?", "Name a colour"]
OWN = "What is 7 times 7?"


def says(memory: str, plain: str) -> Reply:
    return lambda _prompt, memory_id: f"\\boxed{{{memory if memory_id else plain}}}"


RIGHT = says("42", "42")


def probe(reply: Reply = RIGHT, **more: Any) -> Probe:
    """Majority answers of the fake trainer are 42."""
    values: dict[str, Any] = {"model": FakeModel(reply=reply), "task_for": get_task} | more
    return Probe(**values)


@pytest.fixture
def taught(bank: Bank, enqueue: Enqueue, make_worker: Make) -> Bank:
    """Three past questions in it."""
    for question in PAST:
        enqueue(question)
    make_worker().run(once=True)
    return bank


def learnt(bank: Bank, enqueue: Enqueue, make_worker: Make, gate: Gate, **more: Any) -> MemoryRecord:
    job = enqueue(OWN)
    make_worker(gate=gate, **more).run(once=True)
    done = bank.jobs.get("ns", job.id)
    assert done.state is JobState.DONE, done.reason
    return bank.memory("ns", str(done.memory_id))


def gated(bank: Bank, memory: MemoryRecord) -> dict[str, Any]:
    (event,) = bank.events("ns", memory.id, kind=EventKind.GATED)
    assert event.note == memory.reason
    return event.detail


def test_a_memory_that_keeps_the_score_serves_and_its_cost_is_recorded(
    taught: Bank, enqueue: Enqueue, make_worker: Make
) -> None:
    told: list[str] = []
    model = FakeModel(reply=says("42", "42"))
    memory = learnt(
        taught, enqueue, make_worker, Gate(probe=probe(model=model)), observe=lambda name, _detail: told.append(name)
    )
    assert (memory.state, memory.reason) == (MemoryState.ACTIVE, None)
    detail = gated(taught, memory)
    assert (detail["state"], detail["criteria"]["probe_own"]["measured"]) == ("active", 0)
    found = detail["probe"]
    assert (found["own_before"], found["own_after"], found["past"], found["kept"]) == (True, True, 3, 3)
    rows = [row for batch in model.batches for row in batch]
    assert len(rows) == 8, "two for each of four questions"
    assert found["tokens"] == 8 * len("\\boxed{42}")
    assert found["seconds"] >= 0
    assert all(row.max_new_tokens == memory.recipe.max_new_tokens and row.temperature == 0 for row in rows)
    assert told.index("train.done") < told.index("probe.done") < told.index("publish.committed")


@pytest.mark.parametrize(
    ("reply", "state", "reason"),
    [
        (says("1", "1"), MemoryState.ACTIVE, None),
        (says("42", "1"), MemoryState.ACTIVE, None),
        (says("1", "42"), MemoryState.QUARANTINED, "3 of 3 past questions went wrong and 0 came right"),
        (
            lambda prompt, memory: "1" if memory and OWN in prompt else "42",
            MemoryState.CANDIDATE,
            "with it the answer to its own question is no longer its majority's",
        ),
        (
            lambda prompt, memory: "1" if memory and PAST[0] in prompt else "42",
            MemoryState.QUARANTINED,
            "1 of 3 past questions went wrong",
        ),
    ],
)
def test_what_a_probe_decides(
    taught: Bank, enqueue: Enqueue, make_worker: Make, reply: Reply, state: MemoryState, reason: str | None
) -> None:
    memory = learnt(taught, enqueue, make_worker, Gate(probe=probe(reply)))
    assert memory.state is state
    assert (memory.reason is None) == (reason is None)
    assert reason is None or reason in str(memory.reason)
    assert examine(taught).findings == ()
    found = taught.nearest("ns", KeyKind.INPUT, taught.keys("ns", memory.id).input, 9)
    assert (memory.id in {hit.memory_id for hit in found}) is (state is MemoryState.ACTIVE)


def test_a_quarantined_memory_can_be_brought_back(taught: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    memory = learnt(taught, enqueue, make_worker, Gate(probe=probe(says("1", "42"))))
    kinds = [event.kind for event in taught.events("ns", memory.id)]
    assert sorted(kinds) == sorted([EventKind.CREATED, EventKind.GATED, EventKind.QUARANTINED])
    taught.transition("ns", memory.id, MemoryState.ACTIVE, actor="ada", reason="I looked")
    assert taught.memory("ns", memory.id).state is MemoryState.ACTIVE


def test_an_empty_namespace_is_probed_on_the_own_question_alone(
    bank: Bank, enqueue: Enqueue, make_worker: Make
) -> None:
    memory = learnt(bank, enqueue, make_worker, Gate(probe=probe(says("1", "42"))))
    assert (memory.state, gated(bank, memory)["probe"]["past"]) == (MemoryState.CANDIDATE, 0)


def test_references_are_the_nearest_clear_votes_of_the_same_task(
    taught: Bank, enqueue: Enqueue, make_worker: Make
) -> None:
    enqueue("What is 7 times 6?")
    make_worker(FakeTrainer(vote_share=0.25)).run(once=True)  # too split to be a reference
    enqueue("What is 7 times 5?", task="number")
    make_worker().run(once=True)
    job, made = enqueue(OWN), FakeTrainer().train
    trained = made(OWN, recipe=job.recipe, seed=1, observe=lambda *_: None, cancelled=lambda: False)
    found = probe(questions=2).references(taught, job, trained)
    assert {one.question for one in found} == set(PAST[:2])
    assert found[0] == Reference(found[0].question, "42")
    assert probe(questions=0).references(taught, job, trained) == []
    with pytest.raises(InputError, match="0 past questions or more; got -1"):
        probe(questions=-1)


def test_a_probe_that_fails_keeps_the_memory_as_a_candidate(
    taught: Bank, enqueue: Enqueue, make_worker: Make
) -> None:
    told: dict[str, Any] = {}
    broken = FakeModel(memory_error=RuntimeError("out of\nmemory"))
    gate = Gate(probe=probe(model=broken))
    memory = learnt(taught, enqueue, make_worker, gate, observe=lambda name, detail: told.update({name: detail}))
    assert (memory.state, memory.reason) == (MemoryState.CANDIDATE, "the probe failed: RuntimeError: out of memory")
    assert told["probe.failed"]["reason"] == "RuntimeError: out of memory"
    assert "probe" not in gated(taught, memory)


def test_an_unknown_task_keeps_the_memory_too(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    def nobody(name: str) -> Any:
        raise InputError(f"no task {name}")

    memory = learnt(bank, enqueue, make_worker, Gate(probe=probe(task_for=nobody)))
    assert (memory.state, memory.reason) == (MemoryState.CANDIDATE, "the probe failed: InputError: no task math")


class Stuck(FakeModel):
    """Its rows never end by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Future[Generation]] = []

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        del request
        self.rows.append(Future())
        return self.rows[-1]


def test_a_probe_stops_when_its_job_does(taught: Bank, enqueue: Enqueue) -> None:
    enqueue(OWN)
    lease = taught.jobs.claim("me", lease_seconds=600)
    assert lease is not None
    stuck = Stuck()
    with pytest.raises(JobCancelled, match="stopped among the rows of its probe"):
        learn(
            lease,
            trainer=FakeTrainer(),
            bank=taught,
            model_fingerprint=fake_fingerprint(),
            observe=lambda _name, _detail: None,
            cancelled=lambda: len(stuck.rows) == 8,
            gate=Gate(probe=probe(model=stuck)),
        )
    assert len(stuck.rows) == 8
    assert all(row.cancelled() for row in stuck.rows)
    assert len(taught.memories("ns")) == len(PAST), "nothing was published"


def test_what_the_training_speaks_against_is_not_probed(taught: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    model = FakeModel()
    gate = Gate(rules=Rules(min_vote_rise=0.5), probe=probe(model=model))
    memory = learnt(taught, enqueue, make_worker, gate)
    assert (memory.state, model.batches) == (MemoryState.CANDIDATE, [])
    assert gated(taught, memory)["criteria"]["vote_rise"] == {"measured": 0.0, "bound": 0.5, "passed": False}


def test_without_rules_the_ledger_says_what_it_always_said(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    memory = learnt(bank, enqueue, make_worker, Gate())
    assert gated(bank, memory) == {"state": "active", "vote_share": 0.75}


def test_a_whole_network_is_refused() -> None:
    made, nobody = FakeTrainer().train, cast(Any, None)
    trained = made(OWN, recipe=Recipe(), seed=1, observe=lambda *_: None, cancelled=lambda: False)
    whole = replace(trained, prompt=Weights(torch.nn.Linear(1, 1)))
    with pytest.raises(InputError, match="a whole network is no memory"):
        probe()(nobody, nobody, whole, cancelled=lambda: False)


def test_results_know_their_scores() -> None:
    found = ProbeResult(own_before=False, own_after=True, past=3, kept=1, fixed=1, broken=1, tokens=1, seconds=0.0)
    assert (found.before, found.after) == (2, 3)
