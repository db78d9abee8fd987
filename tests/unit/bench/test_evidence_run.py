"""The protocols with methods that write down what they see: order, isolation, failures, runs taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evidence_scripts import SETTINGS, Killed, Scripted, ScriptedMaker, Told, answers, carry_out, plan_of, timeless

from elm_agent.bench.evidence import methods, orders
from elm_agent.bench.evidence.contract import Phase, Protocols
from elm_agent.bench.evidence.folder import RunFolder, read_run
from elm_agent.bench.evidence.plan import Plan, head_of
from elm_agent.bench.evidence.task_sets import load_task_set
from elm_agent.errors import InputError, StorageError, StoreBusy
from elm_agent.testing.doubles import FakeModel


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    monkeypatch.setattr(Scripted, "log", [])
    monkeypatch.setattr(Scripted, "fails", {})
    monkeypatch.setattr(ScriptedMaker, "fails", {})
    monkeypatch.setitem(methods.METHODS, "scripted", Scripted)
    monkeypatch.setitem(methods.METHODS, "other", Scripted)
    monkeypatch.setitem(methods.METHODS, "made", Scripted)
    monkeypatch.setitem(methods.MAKERS, "made", ScriptedMaker)
    return Scripted.log


def test_each_question_meets_what_was_learned_before_it_and_nothing_else(tmp_path: Path) -> None:
    lines = carry_out(plan_of("scripted", seeds=(3,)), tmp_path)
    items = orders.shuffled(load_task_set("arithmetic", limit=4).items, 3)
    ids = [item.id for item in items]
    steps: list[tuple[object, ...]] = [("open", "scripted", 3)]
    for position, one in enumerate(ids):
        steps += [("answer", one, tuple(ids[:position])), ("learn", one, str(position))]
    assert [*steps, ("close", "scripted")] == Scripted.log
    assert [(line.phase, line.position, line.item_id) for line in lines] == [
        (phase, position, one) for position, one in enumerate(ids) for phase in (Phase.ANSWER, Phase.LEARN)
    ]
    for line, item in zip(answers(lines), items, strict=True):
        assert line.correct == (int(item.answer) == line.position)
        assert line.candidates[0].correct == line.correct
        assert (line.family, line.split, line.source) == (item.family, item.split, "arithmetic")


def test_a_seed_is_an_order_for_every_method(tmp_path: Path) -> None:
    lines = carry_out(plan_of("scripted", "other", "zero_shot", seeds=(0, 1), limit=12), tmp_path)
    by_run: dict[tuple[str, int], list[str]] = {}
    for line in answers(lines):
        by_run.setdefault((line.method, line.seed), []).append(line.item_id)
    assert by_run["scripted", 0] == by_run["other", 0] == by_run["zero_shot", 0]
    assert by_run["scripted", 0] != by_run["scripted", 1]
    assert sorted(by_run["scripted", 0]) == sorted(by_run["scripted", 1])


@pytest.mark.parametrize("protocol", list(Protocols))
def test_a_run_that_is_killed_anywhere_ends_like_one_that_is_not(tmp_path: Path, protocol: Protocols) -> None:
    sources = ("arithmetic:sums",) if protocol is Protocols.TRANSFER else ()
    plan = plan_of("zero_shot", "made", protocol=protocol, sources=sources, limit=3)
    whole = timeless(carry_out(plan, tmp_path / "whole"))
    assert len(whole) == {Protocols.ONLINE: 9, Protocols.OFFLINE: 15, Protocols.TRANSFER: 12}[protocol]
    for after in range(1, len(whole)):
        out = tmp_path / str(after)
        with pytest.raises(Killed):
            carry_out(plan, out, observe=Told(kill_after=after))
        with (out / "generations.jsonl").open("ab") as file:
            file.write(b'{"line":99,"question_dig'[: after * 4])
        told = Told()
        assert timeless(carry_out(plan, out, observe=told)) == whole, f"killed after {after} lines"
        assert told["start"]["mended"]
        made = sum(name in ("answer", "learn") for name, _ in told.events)
        assert made == len(whole) - after, "something was done twice"


def test_what_was_learned_is_given_back_in_order(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        carry_out(plan_of("scripted"), tmp_path, observe=Told(kill_after=5))
    assert Scripted.log[-1] == ("close", "scripted"), "a method is closed whatever happens"
    Scripted.log.clear()
    lines = carry_out(plan_of("scripted"), tmp_path)
    ids = [line.item_id for line in answers(lines)]
    assert Scripted.log[:4] == [
        ("open", "scripted", 0),
        ("restore", ids[0], {"id": ids[0]}),
        ("restore", ids[1], {"id": ids[1]}),
        ("learn", ids[2], "2"),
    ], "the third had been answered, but not learned from"
    Scripted.log.clear()
    carry_out(plan_of("scripted"), tmp_path)
    assert Scripted.log == [], "a finished run opens nothing"


def test_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    carry_out(plan_of("scripted"), tmp_path)
    before = (tmp_path / "run.json").read_text()
    changed: list[tuple[Plan, dict[str, Any], str]] = [
        (plan_of("scripted", limit=3), {}, r"plan\.limit is 4 there and 3 here"),
        (plan_of("scripted", prompt="paper"), {}, r'plan\.prompt is "short" there and "paper" here'),
        (plan_of("scripted", task_seed=1), {}, r"task_sets\.arithmetic\.digest is"),
        (
            plan_of("scripted", protocol=Protocols.TRANSFER, sources=("arithmetic:sums",)),
            {},
            r'protocol is "online" there',
        ),
        (plan_of("scripted"), {"learning": {"steps": 3}}, r"settings\.learning\.steps is 10 there and 3 here"),
    ]
    for plan, settings, words in changed:
        with pytest.raises(InputError, match=words):
            carry_out(plan, tmp_path, settings=SETTINGS.changed(**settings))
    with pytest.raises(InputError, match=r"a run with model 'fake'.*this is 'another'"):
        carry_out(plan_of("scripted"), tmp_path, model=FakeModel(name="another"))
    assert (tmp_path / "run.json").read_text() == before
    assert read_run(tmp_path).run["methods"] == ["scripted"]


def test_a_setting_that_there_was_not_when_the_run_began_was_as_by_default(tmp_path: Path) -> None:
    carry_out(plan_of("scripted"), tmp_path)
    run = tmp_path / "run.json"
    noted = json.loads(run.read_text())
    del noted["settings"]["verification"]["opinions"], noted["settings"]["review"]
    run.write_text(json.dumps(noted))
    carry_out(plan_of("scripted", "other"), tmp_path)
    with pytest.raises(InputError, match=r"settings\.verification\.opinions is 0 there and 2 here"):
        carry_out(plan_of("scripted"), tmp_path, settings=SETTINGS.changed(verification={"opinions": 2}))


def test_more_methods_and_seeds_may_be_added(tmp_path: Path) -> None:
    first = carry_out(plan_of("scripted"), tmp_path)
    more = carry_out(plan_of("other", "scripted", seeds=(1,)), tmp_path)
    assert more[: len(first)] == first
    run = read_run(tmp_path)
    assert (run.run["methods"], run.run["seeds"]) == (["scripted", "other"], [0, 1])
    assert timeless(run.lines) == timeless(more)
    assert {(line.method, line.seed) for line in more} == {("scripted", 0), ("other", 1), ("scripted", 1)}
    assert run.items["arithmetic", first[0].item_id].question


def test_every_command_that_a_run_went_on_with_is_noted(tmp_path: Path) -> None:
    for command in ("first", "second", "first", "second", "third"):
        head = head_of(plan_of("scripted"), SETTINGS, {}, {"command": command, "date": "today"})
        RunFolder(tmp_path, head, []).close()
    made = json.loads((tmp_path / "run.json").read_text())["environment"]
    assert made == {"command": "first", "date": "today", "went_on_with": ["second", "third"]}


def test_a_failure_is_a_record_and_the_stream_goes_on(tmp_path: Path) -> None:
    ids = [item.id for item in orders.shuffled(load_task_set("arithmetic", limit=4).items, 0)]
    Scripted.fails = {f"answer {ids[1]}": RuntimeError("out of memory"), f"learn {ids[2]}": ValueError("no votes")}
    lines = carry_out(plan_of("scripted"), tmp_path)
    failed = {(line.phase, line.item_id): (line.failure, line.correct) for line in lines if line.failure}
    assert failed == {
        (Phase.ANSWER, ids[1]): ("RuntimeError: out of memory", None),
        (Phase.LEARN, ids[2]): ("ValueError: no votes", None),
    }
    assert ("learn", ids[1], None) in Scripted.log, "what could not be answered can be learned from"
    assert ("answer", ids[3], (ids[0], ids[1])) in Scripted.log
    carry_out(plan_of("scripted", "zero_shot"), tmp_path)
    assert not any(step[0] == "restore" and step[1] == ids[2] for step in Scripted.log)


def test_a_full_disk_ends_the_run_and_not_one_question(tmp_path: Path) -> None:
    ids = [item.id for item in orders.shuffled(load_task_set("arithmetic", limit=4).items, 0)]
    Scripted.fails = {f"learn {ids[1]}": StorageError("no space left")}
    with pytest.raises(StorageError, match="no space left"):
        carry_out(plan_of("scripted"), tmp_path)
    Scripted.fails = {}
    lines = carry_out(plan_of("scripted"), tmp_path)
    assert len(lines) == 8
    assert not any(line.failure for line in lines)


def test_what_cannot_be_compared_is_no_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from elm_agent.errors import TaskError
    from elm_agent.tasks import MathTask

    def refuse(_task: MathTask, _left: str, _right: str) -> bool:
        raise TaskError("too hard")

    monkeypatch.setattr(MathTask, "equivalent", refuse)
    lines = carry_out(plan_of("scripted"), tmp_path)
    for line in answers(lines):
        assert (line.correct, line.candidates[0].correct) == (None, None)
        assert line.failure == "the answer could not be compared: TaskError: too hard"


def test_a_bank_of_one_task_answers_another_and_learns_nothing_there(tmp_path: Path) -> None:
    plan = plan_of(
        "scripted",
        "zero_shot",
        protocol=Protocols.TRANSFER,
        sources=("arithmetic:sums@train", "arithmetic:ages"),
        tasks=("arithmetic:sums@test",),
        limit=3,
    )
    lines = carry_out(plan, tmp_path)
    for source in ("arithmetic:sums@train", "arithmetic:ages"):
        learned = [line for line in lines if line.phase is Phase.LEARN and line.source == source]
        assert [line.task for line in learned] == [source] * 3
        known = tuple(line.item_id for line in learned)
        asked = [line for line in answers(lines) if line.source == source and line.task != source]
        assert [line.answer for line in asked] == ["3"] * 3
        assert len([step for step in Scripted.log if step[0] == "answer" and step[2] == known]) == 3
    plain = [line for line in lines if line.method == "zero_shot"]
    assert [(line.task, line.source) for line in plain] == [("arithmetic:sums@test", None)] * 3


def test_every_memory_answers_every_question(tmp_path: Path) -> None:
    items = load_task_set("arithmetic", limit=3).items
    ScriptedMaker.fails = {
        f"learn {items[1].id}": ValueError("nan"),
        f"use {items[2].id} {items[0].id}": RuntimeError("too long"),
    }
    lines = carry_out(plan_of("made", protocol=Protocols.OFFLINE, limit=3), tmp_path)
    cells = {(line.learner, line.item_id): line for line in answers(lines)}
    assert set(cells) == {(row.id, item.id) for row in (items[0], items[2]) for item in items}
    failed = {name: (line.failure, line.correct) for name, line in cells.items() if line.correct is None}
    assert failed == {(items[2].id, items[0].id): ("RuntimeError: too long", None)}, (
        "others of its batch are answered"
    )
    assert {line.text for (row, _), line in cells.items() if row == items[0].id} == {
        f"{items[0].id} for {item.id}" for item in items
    }
    assert [line.failure for line in lines if line.phase is Phase.LEARN] == [None, "ValueError: nan", None]


def test_a_plan_that_cannot_be_carried_out_is_refused_before_a_model_is_opened(tmp_path: Path) -> None:
    refused = [
        (plan_of("nothing"), "unknown method 'nothing'"),
        (plan_of("zero_shot", "zero_shot"), "--methods names something twice"),
        (plan_of(), "--methods names nothing"),
        (plan_of("scripted", protocol=Protocols.OFFLINE), "'scripted' makes no memories of one question each"),
        (plan_of("scripted", protocol=Protocols.TRANSFER), "transfer needs --source"),
        (plan_of("ttrl:full"), "'ttrl:full' needs the whole set at once: `elm-agent bench offline` has it"),
        (plan_of("elm:soft"), "unknown word 'soft'"),
        (plan_of("elm:grpo_ground_truth"), "use it with `elm-agent bench offline`"),
        (plan_of("elm:steps=0"), "method 'elm:steps=0': setting 'learning.steps': got '0'"),
        (plan_of("elm_kv:retrieval.depth=2"), "unknown setting 'retrieval.depth'"),
        (plan_of("zero_shot", tasks=("arithmetic:magic",)), "unknown family 'magic'"),
        (plan_of("zero_shot", prompt="long"), "--prompt is 'long'"),
    ]
    for plan, words in refused:
        with pytest.raises(ValueError, match=words.replace("(", r"\(")):
            carry_out(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_process_writes_a_run_while_others_may_read_it(tmp_path: Path) -> None:
    lines = carry_out(plan_of("scripted"), tmp_path)
    head = json.loads((tmp_path / "run.json").read_text())
    same = {name: head[name] for name in head if name != "model"}
    with RunFolder(tmp_path, same, []):
        with pytest.raises(StoreBusy):
            carry_out(plan_of("scripted"), tmp_path)
        with (tmp_path / "generations.jsonl").open("ab") as file:
            file.write(b'{"line":9,"ques')
        assert timeless(read_run(tmp_path).lines) == timeless(lines)


def test_numbers_that_are_not_finite_are_stored_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from elm_agent.bench.evidence.contract import CandidateLine, Item, Outcome

    def answer(_self: Scripted, _item: Item) -> Outcome:
        made = CandidateLine(role="sample", text="\ud800", answer="1", mean_logprob=float("-inf"))
        return Outcome(answer="1", text="\ud800", candidates=(made,), detail={"score": float("nan")})

    monkeypatch.setattr(Scripted, "answer", answer)
    carry_out(plan_of("scripted", limit=1), tmp_path)
    line = read_run(tmp_path).lines[0]
    assert (line.candidates[0].mean_logprob, line.detail) == (None, {"score": None})


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json does not exist"):
        read_run(tmp_path)
    (tmp_path / "generations.jsonl").write_text("a diary\n")
    with pytest.raises(InputError, match=r"line 1 of .* is not a record of a run"):
        carry_out(plan_of("zero_shot"), tmp_path)
    assert (tmp_path / "generations.jsonl").read_text() == "a diary\n"
