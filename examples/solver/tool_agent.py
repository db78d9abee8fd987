"""The same calculator in the hands of a model that calls tools by itself: an agent of LangChain with memory.

The embedded model's chat template has no place for tools, and says so; `solver.py` is for it. With one that has:

Run:  pip install 'elm-agent[langchain]'
      ELM_MODEL=Qwen/Qwen2.5-1.5B-Instruct python examples/solver/tool_agent.py "What is 73 times 46, plus 19?"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

from calculator import CalculationError, calculate, shown
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool

from elm_agent import ElmError, Runtime, Settings, open_runtime
from elm_agent.integrations.langchain import ChatELM, ElmMemoryMiddleware

ASKS = "Use the calculator for every calculation. End with the final answer in \\boxed{}."


@tool
def calculator(calculation: Annotated[str, "Numbers, brackets and + - * / // % alone, such as (3 + 4) * 2."]) -> str:
    """Work out a calculation exactly."""
    try:
        return shown(calculate(calculation))
    except CalculationError as error:  # the model reads it and can try again
        return str(error)


def build_solver(runtime: Runtime) -> Any:
    """The agent: it calls the calculator as often as it likes; its final answer is given with and without memory."""
    return create_agent(
        ChatELM(runtime=runtime), tools=[calculator], system_prompt=ASKS, middleware=[ElmMemoryMiddleware(runtime)]
    )


def solve(agent: Any, question: str) -> None:
    """Show calls, results and words as they come."""
    for message, _ in agent.stream({"messages": question}, stream_mode="messages"):
        if isinstance(message, ToolMessage):
            print(f"\n  calculator: {message.text}", flush=True)
        elif isinstance(message, AIMessage):  # pieces of one, or all of it where a memory was beside it
            for call in message.tool_calls:
                print(f"\n  calls {call['name']}({', '.join(map(str, call['args'].values()))})", end="", flush=True)
            print(message.text, end="", flush=True)
    print()


def main(questions: Sequence[str]) -> int:
    try:
        with open_runtime(Settings(namespace="tool-solver")) as runtime:
            agent = build_solver(runtime)
            for question in questions or ["What is 73 times 46, plus 19?"]:
                print(question)
                solve(agent, question)
    except KeyboardInterrupt:
        return 130
    except ElmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
