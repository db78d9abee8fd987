"""A solver that works through a file of problems with a calculator, streaming, and learns on the way.

Run:  python examples/solver/solver.py                  the problems beside this file
      python examples/solver/solver.py MINE.jsonl       your own: {"question": ..., "answer": ...} in each line
      python examples/solver/solver.py --ask            type them in
      python examples/solver/solver.py --short          a few, and little learning: what CI runs
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from calculation import CalculationTask, numbers_used
from calculator import find, shown
from rich.console import Console

from elm_agent import ElmError, Runtime, Settings, UseOutcome, open_runtime
from elm_agent.bench.streams import Line, read_questions
from elm_agent.errors import InputError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.verification import CallableVerifier

PROBLEMS = Path(__file__).parent / "problems.jsonl"
LITTLE = {"steps": 2, "rollouts": 3, "max_new_tokens": 8}


class Waiting:
    """A line on the terminal about what takes long; an observer of learning. On a pipe it keeps silent."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._step = ""

    def __call__(self, name: str, detail: dict[str, Any]) -> None:
        if name == "train.step":
            self._step = f", step {detail['step'] + 1}, {detail['vote_share']:.0%} of the votes agree"

    def learn(self, runtime: Runtime) -> None:
        """Wait until all that was asked about is learnt."""
        with self.console.status("learning") as status:
            while not runtime.runner.wait_idle(0.5):
                status.update("learning" + self._step)

    def open(self, settings: Settings) -> Runtime:
        """The runtime with our task and verifier; its model is fetched first if need be."""
        with self.console.status("loading the model") as status:
            return open_runtime(
                settings,
                task=CalculationTask(),
                verifier=CallableVerifier(numbers_used, name="numbers_used"),
                observe=self,
                progress=lambda done, total: status.update(f"fetching the model, {done >> 20} of {total >> 20} MB"),
            )


class Solver:
    """Answers problems one after the other, telling each as it happens, and counts."""

    def __init__(self, runtime: Runtime, waiting: Waiting, *, learn_from: int | None, out: Path | None) -> None:
        """``learn_from``: so many problems, each before the next one is answered; None: all, in the background."""
        self.counts: Counter[str] = Counter()
        self._runtime = runtime
        self._graph: Any = build_graph(runtime)
        self._waiting = waiting
        self._say = waiting.console.print
        self._learn_from = learn_from
        self._out = out

    def solve(self, line: Line) -> None:
        """One problem. What cannot be asked is told and counted, and the next one comes."""
        self._say(f"{line.number:>3}  {readable(line.question or line.fault or '')}")
        if line.question is None:
            self.counts["unusable"] += 1
            return
        learn = self._learn_from is None or self.counts["answered"] < self._learn_from
        try:
            answer = self._answer(line.question, learn)
        except InputError as error:
            self._say(f"\n     {error}")
            self.counts["unusable"] += 1
            return
        self.counts["answered"] += 1
        verdict = self._judge(answer, line.reference)
        self._say(f"     calculator: {both_worked_out(answer)}   [{answer['route']}]{verdict}")
        if self._out is not None:
            self._write(line, answer)
        if learn and self._learn_from is not None:
            self._waiting.learn(self._runtime)

    def _answer(self, question: str, learn: bool) -> dict[str, Any]:
        """Stream the graph: what is recalled, and what the model writes, as it writes it."""
        answer: dict[str, Any] = {}
        source, streamed = "zero_shot", False
        parts = self._graph.stream(
            {"question": question}, context={"pieces": True, "learn": learn}, stream_mode=["custom", "values"]
        )
        for mode, part in parts:
            if mode == "values":
                answer = part
            elif part["event"] == "elm.retrieved":
                if part["memory_id"] and not part["failed"]:
                    source = "memory"  # both answers are written at once; the one to look at is the one with it
                    memory = self._runtime.bank.memory(part["memory_namespace"], part["memory_id"])
                    self._say(f"     recalls: {memory.question} ({part['similarity']:.2f})")
                self._say("     writes: ", end="")
            elif part["event"] == "elm.piece" and part["source"] == source:
                self._say(readable(part["text"]), end="")
                streamed = True
        self._say("" if streamed else readable(answer["text"]))
        return answer

    def _judge(self, answer: dict[str, Any], reference: str | None) -> str:
        """Compare with the file's answer, if it has one, and note what the memory did."""
        if reference is None:
            return ""
        plain = answer["candidates"]["zero_shot"]
        right, plain_right = (
            said is not None
            and said["answer"] is not None
            and self._runtime.task.equivalent(said["answer"], reference)
            for said in (answer, plain)
        )
        outcome = {
            (True, True): UseOutcome.BOTH_RIGHT,
            (True, False): UseOutcome.FIXED,
            (False, True): UseOutcome.BROKEN,
            (False, False): UseOutcome.BOTH_WRONG,
        }[right, plain_right]
        self.counts.update(judged=1, right=right, plain_right=plain_right, fixed=outcome == UseOutcome.FIXED)
        self.counts["broken"] += outcome == UseOutcome.BROKEN
        if answer["use_id"] is not None and plain is not None:
            self._runtime.bank.settle_use(self._runtime.settings.namespace, answer["use_id"], outcome)
        return " right" if right else f" wrong, it is {reference}"

    def _write(self, line: Line, answer: dict[str, Any]) -> None:
        kept = {name: answer[name] for name in ("answer", "text", "route", "memory_id", "similarity", "use_id")}
        row = {"line": line.number, "question": line.question, "reference": line.reference, **kept}
        assert self._out is not None
        with self._out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def sum_up(self) -> None:
        counts, namespace = self.counts, self._runtime.settings.namespace
        self._say(f"\n{counts['answered']} answered, {counts['unusable']} could not be asked")
        if counts["judged"]:
            self._say(
                f"right: {counts['right']} of {counts['judged']}, without memories {counts['plain_right']}; "
                f"memories fixed {counts['fixed']} and broke {counts['broken']}"
            )
        for memory in reversed(self._runtime.bank.memories(namespace)):
            self._say(
                f"{memory.id}  {memory.state}, {memory.final_vote_share:.0%} of the last votes agree, used "
                f"{memory.uses} times: {memory.question}"
            )


def worked_out(text: str) -> str:
    """What the calculator makes of a text."""
    found = find(text)
    return "nothing to work out" if found is None else f"{found[0]} = {shown(found[1])}"


def both_worked_out(answer: dict[str, Any]) -> str:
    """What it makes of the text that was streamed, and of the one without the memory where that is another."""
    memory, plain = answer["candidates"]["memory"], answer["candidates"]["zero_shot"]
    if memory is None or plain is None:
        return worked_out(answer["text"])
    said = worked_out(memory["text"])
    return said if memory["text"] == plain["text"] else f"{said}; without the memory {worked_out(plain['text'])}"


def readable(text: str) -> str:
    """In one line, without what steers a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def typed(console: Console) -> Iterator[Line]:
    """Problems from the terminal, until an empty line or Ctrl-D."""
    with suppress(EOFError):
        number = 0
        while question := console.input("problem> ", markup=False).strip():
            number += 1
            yield Line(number, question)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Works through problems with a calculator, and learns on the way.")
    parser.add_argument("file", nargs="?", type=Path, default=PROBLEMS, help="JSONL; default: the one of the example")
    parser.add_argument("--ask", action="store_true", help="type the problems in; an empty line ends it")
    parser.add_argument(
        "--learn", type=int, default=4, metavar="N", help="learn from the first N problems; default: 4"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also append a line of JSON for each answer")
    parser.add_argument("--home", type=Path, help="folder of the bank; default: ELM_HOME, or ./.elm")
    parser.add_argument("--short", action="store_true", help="few problems and little learning, to see that it works")
    return parser.parse_args(given)


def run(args: argparse.Namespace, console: Console) -> None:
    waiting = Waiting(console)
    settings = Settings() if args.home is None else Settings(home=args.home)
    settings = settings.changed(
        namespace="solver",
        max_new_tokens=min(settings.max_new_tokens, 24),
        retrieval={"exclude_same_question": True},  # a file that is worked through again must not meet itself
    )
    lines: Iterable[Line] = typed(console) if args.ask else list(read_questions(args.file))
    learn_from = None if args.ask else args.learn
    if args.short:
        settings, learn_from = settings.changed(learning=LITTLE), min(args.learn, 1)
        lines = lines if args.ask else list(lines)[:5]
    with waiting.open(settings) as runtime:
        solver = Solver(runtime, waiting, learn_from=learn_from, out=args.out)
        try:
            for line in lines:
                solver.solve(line)
            waiting.learn(runtime)
        except KeyboardInterrupt:
            console.print("\nStopped. What is learned stays; the rest waits in the queue.")
            raise
        finally:
            solver.sum_up()


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    try:
        run(args, console)
    except KeyboardInterrupt:
        return 130
    except (ElmError, OSError) as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"error: {error}")
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
