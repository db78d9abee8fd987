"""In a chain: the graph and the chat model are Runnables, so they stand between a prompt and a parser.

Run:  python examples/07_chain.py
"""

from __future__ import annotations

from operator import itemgetter

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda

from elm_agent import Settings, open_runtime
from elm_agent.integrations.langchain import ChatELM
from elm_agent.integrations.langgraph import build_graph


def main() -> None:
    with open_runtime(Settings()) as runtime:
        # 1. The graph: answers with memory, learns from what it is asked.
        ask = PromptTemplate.from_template("What is {a} times {b}?") | RunnableLambda(
            lambda prompt: {"question": prompt.text}
        )
        product = ask | build_graph(runtime) | itemgetter("answer")
        print("6 times 7 is", product.invoke({"a": 6, "b": 7}), flush=True)
        print("in a batch:", product.batch([{"a": 2, "b": 3}, {"a": 2, "b": 4}]), flush=True)
        runtime.runner.wait_idle()

        # 2. The chat model, with one memory bound to it.
        memory = runtime.bank.memories(runtime.settings.namespace)[0]
        prompt = ChatPromptTemplate.from_messages([("system", "Reply with a number."), ("human", "{question}")])
        chain = prompt | ChatELM(runtime=runtime).bind(memory_id=memory.id) | StrOutputParser()
        print(f"with the memory of {memory.question!r}:", end=" ")
        for piece in chain.stream({"question": "What is 6 times 8?"}):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
