"""The tutor of examples/tutor: its hints, lessons with walls between learners, and all of it on a tiny model."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import session
import tutor
from hints import hidden, ladder, shape
from langgraph.types import Command
from lesson import Lesson, Tutor

from elm_agent import Runtime, open_bank, open_runtime
from elm_agent.errors import InputError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.settings import Settings
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier

COURSE, ADA, BEN = session.COURSE, session.namespace_of("ada"), session.namespace_of("ben")
PROBLEM = session.Problem(
    "What is 7 times 8?", "56", ("Five eights and two eights.",), {"question": "56 : 7?", "answer": "8"}
)
README = (tutor.HERE / "README.md").read_text("utf-8")
KNOWN = {"What is 7 times 7?": "49", PROBLEM.question: "56"}

# --- hints ----------------------------------------------------------------------------------------------------


def test_hints_tell_more_and_more_and_end_with_the_answer() -> None:
    way = "Seven times eight\nis 56, so 56."
    assert ladder("56", taught=["Think."], near=("What is 7 times 7?", "49"), way=way) == [
        "Think.",
        "Think of this one: What is 7 times 7? That is 49.",
        "It has 2 digits and ends in 6.",
        "I would go like this: Seven times eight is ..., so ....",
        "It is 56.",
    ]
    assert ladder("56", way="56.") == ["It has 2 digits and ends in 6.", "It is 56."]


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ("8", "It has one digit, and it is even."),
        ("7", "It has one digit, and it is odd."),
        ("-12", "It is below zero."),
        ("3.5", "It is not a whole number."),
        ("1/2", "It is not a whole number."),
        ("Paris", "It begins with 'P'."),
    ],
)
def test_the_shape_of_an_answer_does_not_say_it(right: str, said: str) -> None:
    assert shape(right) == said


def test_only_the_answer_is_hidden() -> None:
    assert hidden("From 156 take 100 and 56 is left: 56, not 5.6 or 560", "56") == (
        "From 156 take 100 and ... is left: ..., not 5.6 or 560"
    )
    assert hidden("It is 56", "56") is None


# --- lessons --------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime(database_url: str, tmp_path: Path) -> Iterator[Runtime]:
    """A course of one problem, and learners who may read it. With a memory the model is right, without it is not."""
    model = FakeModel(reply=lambda _prompt, memory_id: "So it is 56." if memory_id else "It is 54.")
    settings = Settings(
        home=tmp_path, database_url=database_url, index="exact", task="number", worker={"mode": "inline"}
    )
    parts: dict[str, Any] = {"model": model, "trainer": FakeTrainer(), "verifier": FixedVerifier()}
    with open_runtime(settings, namespace=COURSE, **parts) as teacher:
        build_graph(teacher).invoke({"question": "What is 7 times 7?"})
    with open_runtime(settings, namespace=ADA, shared_namespaces=(COURSE,), **parts) as opened:
        yield opened


def hold(
    runtime: Runtime, replies: Sequence[str], *, learner: str = "ada", problem: session.Problem = PROBLEM
) -> tuple[Lesson, list[str]]:
    """A whole lesson; how it ended and all that the tutor said."""
    namespace = session.namespace_of(learner)
    graph: Any = Tutor(runtime, namespace, KNOWN).graph()
    config, said = {"configurable": {"thread_id": "1"}}, []
    asked: Any = {
        "question": problem.question,
        "subject": learner,
        "right": problem.answer,
        "taught": list(problem.hints),
        "back": problem.back,
    }
    for reply in [*replies, None]:
        out = graph.invoke(asked, config, context={"namespace": namespace})
        if reply is not None:
            said.append(out["__interrupt__"][0].value["say"])
            asked = Command(resume=reply)
    assert "__interrupt__" not in out
    return out, [*said, out["say"]]


def test_hints_grow_the_tutor_asks_back_and_feedback_is_noted(runtime: Runtime) -> None:
    out, said = hold(runtime, ["54", "?", "it is 56", "8"])
    assert said == [
        "What is 7 times 8?",
        "Five eights and two eights.",
        "Think of this one: What is 7 times 7? That is 49.",
        "Right: 56. And: 56 : 7?",
        "Right.",
    ]
    assert (out["end"], out["attempts"], out["given"]) == ("solved", ["54", "it is 56"], 2)
    assert (out["answer"], out["route"], out["memory_namespace"]) == ("56", "memory", COURSE)
    assert out["feedback"] == {"verdict": "right", "effect": "helped"}
    [use] = runtime.bank.uses(ADA)
    assert (use.feedback, use.feedback_answer, use.memory_namespace) == ("right", "56", COURSE)
    assert list(session.happened(runtime, out)) == [
        "What is 7 times 8?  solved, attempts 2, hints 2",
        "    the tutor's own answer: 56 (memory), beside the memory of 'What is 7 times 7?' from 'course'; noted as "
        "right, the memory: helped",
    ]
    [learnt] = session.learnt(runtime, ADA, KNOWN, [PROBLEM.question])
    assert learnt.startswith("What is 7 times 8?  votes for 42 (it is 56): 75% -> 75%   mem_")


def test_the_course_is_read_and_never_written(runtime: Runtime) -> None:
    bank = runtime.bank
    before = (bank.namespace(COURSE).revision, [event.digest for event in bank.events(COURSE)])
    hold(runtime, ["56", "8"])
    assert (bank.namespace(COURSE).revision, [event.digest for event in bank.events(COURSE)]) == before
    assert bank.uses(COURSE) == []
    assert [memory.question for memory in bank.memories(COURSE)] == ["What is 7 times 7?"]
    [memory] = bank.memories(ADA)
    assert (memory.question, memory.subject) == (PROBLEM.question, "ada")


def test_what_is_learned_with_one_learner_reaches_no_other(runtime: Runtime) -> None:
    hold(runtime, ["56", "8"])
    [ada] = runtime.bank.memories(ADA)
    ben, _ = hold(runtime, ["56", "8"], learner="ben")
    assert ben["memory_id"] not in (None, ada.id)
    assert ben["memory_namespace"] == COURSE
    again, _ = hold(runtime, ["56", "8"])
    assert (again["memory_id"], again["memory_namespace"]) == (ada.id, ADA)
    [of_ben] = runtime.bank.memories(BEN)
    assert {of_ben.subject, ada.subject} == {"ada", "ben"}
    runtime.bank.forget_subject("ada", actor="test")
    assert runtime.bank.memories(ADA) == []
    assert len(runtime.bank.memories(BEN)) == 1


def test_whoever_gives_up_is_told_and_whoever_leaves_is_let(runtime: Runtime) -> None:
    shown, said = hold(runtime, ["", "hint", "?", "?", "7"])
    assert (shown["end"], shown["given"], shown["attempts"]) == ("shown", 4, [])
    assert said[3:] == ["It has 2 digits and ends in 6.", "It is 56. And: 56 : 7?", "Not quite: 8."]
    left, said = hold(runtime, ["12", "skip"], learner="ben")
    assert (left["end"], said[-1]) == ("skipped", "Let us leave it.")
    assert left["feedback"] is not None


@pytest.mark.parametrize(
    ("told", "verdict", "right"),
    [("yes", "right", "56"), ("57", "wrong", "57"), ("", None, None), ("no", None, None)],
)
def test_where_nobody_has_a_key_the_learner_is_asked_for_it(
    runtime: Runtime, told: str, verdict: str | None, right: str | None
) -> None:
    own = session.Problem("What is 4 times 14?")
    out, said = hold(runtime, ["50", "56", told], problem=own)
    assert said[0] == "What do you think?"
    assert said[2].startswith("That is what I get, too: 56. My own answer is 56. Do you know what is right?")
    assert out["right"] == right
    [use] = runtime.bank.uses(ADA)
    assert (use.feedback, use.feedback_answer) == (verdict, right)


def test_learners_say_anything(runtime: Runtime) -> None:
    out, _ = hold(runtime, ["\x00", "x" * 10_000, "(" * 500, "56", "٨"])
    assert (out["end"], len(out["attempts"]), out["attempts"][-1], out["say"]) == ("solved", 4, "56", "Not quite: 8.")


def test_the_picture_is_the_compiled_graph(runtime: Runtime) -> None:
    """To renew it: put between the two marks what this expects."""
    drawn = Tutor(runtime, ADA, KNOWN).graph().get_graph().draw_mermaid(with_styles=False).strip()
    picture = README.split("<!-- lesson: begin -->\n")[1].split("<!-- lesson: end -->")[0]
    assert picture.strip() == f"```mermaid\n{drawn}\n```"


# --- the whole ------------------------------------------------------------------------------------------------


def test_problems_have_answers_and_questions_back() -> None:
    lessons = session.read_problems(tutor.HERE / "lessons.jsonl")
    course = session.read_problems(tutor.HERE / "course.jsonl")
    assert len(lessons) >= 6
    assert all(problem.answer and problem.hints and problem.back for problem in lessons)
    assert not {problem.question for problem in course} & {problem.question for problem in lessons}


@pytest.mark.parametrize("line", ["[]", "{", '{"question": "What?"}', '"What?"'])
def test_a_broken_file_is_one_sentence(line: str, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(f'{{"question": "1 + 1?", "answer": "2"}}\n{line}\n', "utf-8")
    with pytest.raises(InputError, match=r"mine\.jsonl, line 2 is no problem with an answer"):
        session.read_problems(tmp_path / "mine.jsonl")


@pytest.fixture
def environment(short_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in short_environment.items():
        if name.startswith("ELM_"):
            monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment")
def test_two_made_up_learners_are_taught(capsys: pytest.CaptureFixture[str]) -> None:
    assert tutor.main(["--scripted", "--short"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "Preparing the course, once: 1 of 1 problems" in told.out
    assert "ada> 55\ntutor> Seven eights are five eights and two eights.\nada> ?\n" in told.out
    assert "tutor> Not quite: 6." in told.out
    assert "What was learned, in 'learner.ada':\n  What is 7 times 8?  votes for" in told.out
    assert "What was learned, in 'learner.ben':" in told.out
    bank = open_bank()
    try:
        taught = {name: [memory.question for memory in bank.memories(name)] for name in (COURSE, ADA, BEN)}
        assert taught == {
            COURSE: ["What is 7 times 7?"],
            ADA: ["What is 6 times 9?", "What is 7 times 8?"],
            BEN: ["What is 7 times 8?"],
        }
        assert {use.memory_namespace for use in bank.uses(BEN)} <= {COURSE}
        revision = bank.namespace(COURSE).revision
    finally:
        bank.close()
    assert f"The shared 'course' was read, at revision {revision} before and {revision} after." in told.out


class Interrupting(io.StringIO):
    """A terminal whose user presses Ctrl-C when nothing is left to say."""

    def readline(self, *args: Any) -> str:
        line = super().readline(*args)
        if not line:
            raise KeyboardInterrupt
        return line


@pytest.mark.usefixtures("environment")
def test_a_person_is_taught_until_it_is_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One problem to its end; in the middle of the second Ctrl-C. What was gone through is learned."""
    monkeypatch.setattr("sys.stdin", Interrupting("55\n56\n8\nhint\n"))
    assert tutor.main(["--short", "--learner", "cleo"]) == 0
    told = capsys.readouterr().out
    assert "tutor> That is all for today, then." in told
    assert "Going over what cleo asked" in told
    bank = open_bank()
    assert PROBLEM.question in [memory.question for memory in bank.memories(session.namespace_of("cleo"))]
    bank.close()


@pytest.mark.usefixtures("environment")
def test_a_name_that_cannot_be_kept_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert tutor.main(["--learner", "Ada Lovelace"]) == 2
    assert capsys.readouterr().err.startswith("error: namespace 'learner.Ada Lovelace' is not usable")
