"""The memory agent as a tool of another agent: ask it, look into its memories, tell it what was right.

Any agent that calls tools can hold them: ``create_agent(model, tools=[ask_tool(runtime), *memory_tools(runtime)])``.
Here we make the calls that such an agent would make.

Run:  python examples/06_tools.py
"""

from __future__ import annotations

import json

from elm_agent import Settings, open_runtime
from elm_agent.integrations.langchain import ask_tool, memory_tools


def main() -> None:
    with open_runtime(Settings()) as runtime:
        tools = {tool.name: tool for tool in [ask_tool(runtime), *memory_tools(runtime)]}
        for tool in tools.values():
            print(f"{tool.name}({', '.join(tool.args)}): {tool.description}")

        def call(name: str, **arguments: object):
            message = tools[name].invoke({"type": "tool_call", "id": "1", "name": name, "args": arguments})
            return json.loads(message.content)

        for question in ("What is 6 times 7?", "What is 6 times 8?"):
            out = call("ask_elm", question=question)
            print(f"{question}  ->  {out['answer']}   [{out['route']}]", flush=True)
            runtime.runner.wait_idle()
        for memory in call("recall_memories", question="What is 6 times 9?"):
            why = call("why_memory", memory_id=memory["memory_id"])
            print(f"near: {memory['question']!r} ({memory['similarity']}), votes over the steps {why['vote_shares']}")
        if out["use_id"] is not None:
            print(call("give_feedback", use_id=out["use_id"], verdict="right", answer="48"))


if __name__ == "__main__":
    main()
