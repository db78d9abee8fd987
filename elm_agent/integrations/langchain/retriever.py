"""Memories as documents: which experiences are near a question, for a person or a prompt to look at."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from elm_agent.integrations.langchain.shown import memory_values, namespace_of_run, nearest
from elm_agent.integrations.langgraph.lazy import shared_runtime
from elm_agent.memory.answering import check_question
from elm_agent.runtime import Runtime


class ElmMemoryRetriever(BaseRetriever):
    """The active memories nearest to a question, best first. Sync and async.

    A document is the question that a memory came from and what most of its rollouts answered; ``id`` is the memory's,
    and ``metadata`` has ``similarity`` (cosine) and all that a store shows of it. What a memory has learnt is no
    text: to answer with it, use ``ElmMemoryMiddleware`` or ``ChatELM(memory_id=...)``.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    runtime: Any = Field(default=shared_runtime, exclude=True, repr=False)
    """An open ``Runtime``, or a function that opens one at first use."""
    namespace: str | None = None
    """None: that of the run's context, or the runtime's own."""
    k: int = Field(default=4, ge=1)
    """At most so many."""
    min_similarity: float = Field(default=-1.0, ge=-1, le=1)
    """A cosine; what is further away is left out."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        del run_manager
        runtime: Runtime = self.runtime if isinstance(self.runtime, Runtime) else self.runtime()
        found = nearest(
            runtime,
            check_question(query),
            namespace=namespace_of_run(runtime) if self.namespace is None else self.namespace,
            k=self.k if k is None else k,
            min_similarity=self.min_similarity,
        )
        documents = []
        for hit, memory in found:
            answer = runtime.bank.episode(hit.namespace, hit.memory_id).majority_answer
            documents.append(
                Document(
                    id=memory.id,
                    page_content=memory.question if answer is None else f"{memory.question}\n{answer}",
                    metadata={**memory_values(memory), "similarity": hit.similarity, "majority_answer": answer},
                )
            )
        return documents
