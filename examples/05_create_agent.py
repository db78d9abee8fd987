"""An agent of LangChain with memory: it answers with what it has learnt, and learns from what it answers.

Run:  pip install 'elm-agent[langchain]'  and  python examples/05_create_agent.py
"""

from __future__ import annotations

from langchain.agents import create_agent

from elm_agent import Settings, open_runtime
from elm_agent.integrations.langchain import ChatELM, ElmMemoryMiddleware

QUESTIONS = ["What is 7 times 8?", "What is 7 times 9?"]


def main() -> None:
    # ChatELM() and ElmMemoryMiddleware() alone share a runtime that ELM_... variables describe; here it is our own,
    # so that we can wait for the learning and close it.
    with open_runtime(Settings()) as runtime:
        agent = create_agent(ChatELM(runtime=runtime), middleware=[ElmMemoryMiddleware(runtime)])
        for question in QUESTIONS:
            answer = agent.invoke({"messages": question})["messages"][-1]
            told = answer.response_metadata
            print(f"{question}  ->  {answer.text}   [{told['route']}, memory {told['memory_id']}]", flush=True)
            runtime.runner.wait_idle()  # a real agent goes on; here we want to see the next answer use it

        print("streamed:", end=" ")
        for message, _ in agent.stream({"messages": "What is 7 times 6?"}, stream_mode="messages"):
            print(message.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
