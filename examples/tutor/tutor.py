"""A tutor that remembers each learner apart: hints that grow, questions back, and what was learned at the end.

Run:  python examples/tutor/tutor.py                        you are the learner
      python examples/tutor/tutor.py --scripted --short     two made-up learners and little learning, as in CI
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from langgraph.types import Command
from lesson import Lesson, Tutor
from rich.console import Console
from session import COURSE, Problem, happened, learnt, missing, namespace_of, read_problems

from elm_agent import ElmError, Runtime, Settings, open_runtime
from elm_agent.errors import InputError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.runtime import open_model
from elm_agent.settings import check_namespace

HERE = Path(__file__).parent
LITTLE = {"steps": 2, "rollouts": 3, "max_new_tokens": 8}
SCRIPT = {"ada": ("wrong", "?", "right", "right", "right", "wrong"), "ben": ("right", "right")}
"""What the learners of --scripted say in turn: something right or wrong, or that they want a hint."""
PROBLEMS_OF = {"ada": 2, "ben": 1}


class Learner(Protocol):
    name: str

    def reply(self, asked: dict[str, Any], problem: Problem) -> str: ...


class AtTerminal:
    """A person. Ctrl-D or Ctrl-C ends the session."""

    def __init__(self, name: str, console: Console) -> None:
        self.name = name
        self._console = console

    def reply(self, asked: dict[str, Any], problem: Problem) -> str:
        del asked, problem
        return self._console.input(f"{self.name}> ", markup=False)

    def questions(self) -> Iterator[Problem]:
        """The learner's own, until there is none."""
        while True:
            self._console.print("tutor> Have you a question of your own? (Enter: no)")
            question = self.reply({}, Problem(""))
            if not question.strip():
                return
            yield Problem(question)


class Scripted:
    """A made-up learner."""

    def __init__(self, name: str, console: Console) -> None:
        self.name = name
        self._words = iter(SCRIPT[name])
        self._console = console

    def reply(self, asked: dict[str, Any], problem: Problem) -> str:
        right = problem.back["answer"] if asked["wants"] == "back" and problem.back else problem.answer or ""
        word = next(self._words)
        said = {"right": right, "wrong": f"{int(right) - 1}"}.get(word, word)
        self._console.print(f"{self.name}> {said}")
        return said


class Waiting:
    """A line on the terminal about what takes long; an observer of learning. On a pipe it keeps silent."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._step = ""

    def __call__(self, name: str, detail: dict[str, Any]) -> None:
        if name == "train.step":
            self._step = f", step {detail['step'] + 1}, {detail['vote_share']:.0%} of the votes agree"

    def learn(self, runtime: Runtime, what: str) -> None:
        """Wait until all that was asked about is learnt."""
        with self.console.status(what) as status:
            while not runtime.runner.wait_idle(0.5):
                status.update(what + self._step)

    def load(self, settings: Settings) -> Any:
        """The model, fetched first if need be."""
        with self.console.status("loading the model") as status:
            return open_model(
                settings,
                progress=lambda done, total: status.update(f"fetching the model, {done >> 20} of {total >> 20} MB"),
            )


def prepare_course(settings: Settings, model: Any, course: Sequence[Problem], waiting: Waiting) -> None:
    """Learn the shared namespace, once: in a runtime of its own, the only one that writes there."""
    with open_runtime(settings.changed(namespace=COURSE), model=model, observe=waiting) as teacher:
        todo = missing(teacher, COURSE, course)
        if todo:
            waiting.console.print(
                f"Preparing the course, once: {len(todo)} of {len(course)} problems, up to a minute each.\n"
            )
        graph = build_graph(teacher)
        for problem in todo:
            graph.invoke({"question": problem.question})
        waiting.learn(teacher, "preparing the course")


def go_through(graph: Any, learner: Learner, problem: Problem, waiting: Waiting) -> Lesson:
    """One problem: invoke the graph, answer what it stops for, and so on to its end."""
    namespace = namespace_of(learner.name)
    config = {"configurable": {"thread_id": f"{namespace}/{time.time_ns()}"}}
    asked: Any = {
        "question": problem.question,
        "subject": learner.name,
        "right": problem.answer,
        "taught": list(problem.hints),
        "back": problem.back,
    }
    while True:
        with waiting.console.status("thinking"):
            out: Any = graph.invoke(asked, config, context={"namespace": namespace})
        if "__interrupt__" not in out:
            waiting.console.print(f"tutor> {out['say']}\n")
            over: Lesson = out
            return over
        stopped = out["__interrupt__"][0].value
        waiting.console.print(f"tutor> {stopped['say']}")
        asked = Command(resume=learner.reply(stopped, problem))


def teach(
    runtime: Runtime, learner: Learner, problems: Iterable[Problem], known: dict[str, str], waiting: Waiting
) -> list[Lesson]:
    """The lessons that were gone through until problems or patience ended."""
    graph = Tutor(runtime, namespace_of(learner.name), known).graph()
    done = []
    try:
        for problem in problems:
            try:
                done.append(go_through(graph, learner, problem, waiting))
            except InputError as error:  # a question that nobody can ask costs itself, not the session
                waiting.console.print(f"tutor> {error}\n")
    except (EOFError, KeyboardInterrupt):
        waiting.console.print("\ntutor> That is all for today, then.\n")
    return done


def tell(runtime: Runtime, learner: Learner, done: Sequence[Lesson], known: dict[str, str], waiting: Waiting) -> None:
    """What came of the session: first it is learnt from."""
    say, namespace = waiting.console.print, namespace_of(learner.name)
    if not done:
        return
    say(f"Going over what {learner.name} asked, up to a minute each. Ctrl-C leaves the rest for later.")
    try:
        waiting.learn(runtime, "learning")
    except KeyboardInterrupt:
        say("Stopped: the rest waits for the next session.")
    say(f"\nWhat happened with {learner.name}:")
    for lesson in done:
        for line in happened(runtime, lesson):
            say(f"  {line}")
    say(f"What was learned, in {namespace!r}:")
    for line in learnt(runtime, namespace, known, [lesson["question"] for lesson in done]):
        say(f"  {line}")
    say()


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A tutor that remembers each learner apart.")
    parser.add_argument("--learner", default="you", help="your name: letters, digits, '-', '_' or '.'; default: you")
    parser.add_argument("--home", type=Path, help="folder of the bank; default: ELM_HOME, or ./.elm")
    parser.add_argument("--scripted", action="store_true", help="made-up learners, ada and ben; nobody is asked")
    parser.add_argument(
        "--short", action="store_true", help="a small course and little learning, to see that it works"
    )
    return parser.parse_args(given)


def run(args: argparse.Namespace, console: Console) -> None:
    waiting = Waiting(console)
    settings = Settings() if args.home is None else Settings(home=args.home)
    settings = settings.changed(task="number", max_new_tokens=min(settings.max_new_tokens, 32))
    if args.short:
        settings = settings.changed(learning=LITTLE)
    learners: list[Any] = [Scripted(name, console) for name in SCRIPT]
    if not args.scripted:
        learners = [AtTerminal(args.learner, console)]
    namespaces = [check_namespace(namespace_of(learner.name)) for learner in learners]

    course, lessons = read_problems(HERE / "course.jsonl"), read_problems(HERE / "lessons.jsonl")
    course = course[:1] if args.short else course
    known = {problem.question: problem.answer for problem in (*course, *lessons) if problem.answer}
    model = waiting.load(settings)
    try:
        prepare_course(settings, model, course, waiting)
        own = settings.changed(namespace=namespaces[0], shared_namespaces=(COURSE,))
        with open_runtime(own, model=model, observe=waiting) as runtime:
            before = runtime.bank.namespace(COURSE).revision
            for learner in learners:
                problems: Iterable[Problem] = lessons[: PROBLEMS_OF.get(learner.name)]
                if isinstance(learner, AtTerminal):
                    console.print(f"Hello, {learner.name}. Enter or ? asks for a hint, skip goes on, Ctrl-D ends.\n")
                    problems = chain(missing(runtime, namespaces[0], lessons), learner.questions())
                tell(runtime, learner, teach(runtime, learner, problems, known, waiting), known, waiting)
            after = runtime.bank.namespace(COURSE).revision
            console.print(f"The shared {COURSE!r} was read, at revision {before} before and {after} after.")
    finally:
        model.close()


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    try:
        run(args, console)
    except KeyboardInterrupt:
        console.print("\nStopped. What is learned stays; the rest waits for the next session.")
        return 130
    except ElmError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
