"""The one engine for prompts: text to rows and back, keys and queries, and who may use the network now.

Knows the network, the tokenizer and the lease; knows nothing of memories' records, stores or routes.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from elm_agent.errors import InputError, JobCancelled, ModelError, ModelMismatch
from elm_agent.models import keys
from elm_agent.models.berths import Berths
from elm_agent.models.compute import ComputeThread
from elm_agent.models.decoding import Decoder, Row
from elm_agent.models.drawing import Drawer, Drawing
from elm_agent.models.lease import ModelLease
from elm_agent.models.memory import spare_bytes
from elm_agent.models.network import Network
from elm_agent.models.reading import misfit
from elm_agent.models.serving import Serving, Start, Tokens
from elm_agent.models.step import moving_rotations
from elm_agent.models.streaming import TextStream
from elm_agent.models.streams import Lane
from elm_agent.models.templates import ChatTemplate, refuse_half_characters
from elm_agent.models.twins import twin_of
from elm_agent.protocols import GenerationRequest, Message
from elm_agent.records import Generation, KeyKind, MemoryKeys, ModelFingerprint, Vector
from elm_agent.softprompt import SoftPrompt

_Result = TypeVar("_Result")

_LOOK_SECONDS = 0.2  # between two looks whether a job is still wanted


class LocalModel:
    """A ``LanguageModel`` on transformers. Safe from any thread; close it to stop its batching thread.

    Args:
        model: a causal language model; put into eval mode, its parameters frozen.
        tokenizer: its tokenizer; without a chat template the messages' contents are joined by blank lines.
        fingerprint: what memories made with it depend on.
        max_batch_rows: most rows that generate together.
        join_window: seconds that the first request of a batch waits for company.
        kv_heads: pool attention heads in kv keys ("mean", the paper) or keep them ("keep").
        ignore_end: no token ends a row, each runs to its limit: for measurements that must draw the same number.
        pack: decode with weights that are packed once, where that is quicker: see ``packed``.
        graphs: decode by CUDA graphs on a GPU: see ``recorded``.
        prefix_cache_bytes: for keys and values of how answers' rows begin, where weights are packed.
        overlap: draw tokens while memories are updated, on a GPU with a stream each; on a CPU both are slower.
            Not where a pass changes the network's rotations, as with rope of type `dynamic`.
        drawer: has another engine draw the tokens; None: the model does. All else comes from the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: ModelFingerprint,
        *,
        max_batch_rows: int = 64,
        join_window: float = 0.004,
        kv_heads: str = "mean",
        ignore_end: bool = False,
        pack: bool = True,
        graphs: bool = False,
        prefix_cache_bytes: int = 2**28,
        overlap: bool = False,
        drawer: Drawer | None = None,
    ) -> None:
        self.network = Network(model, pack=pack, graphs=graphs, prefix_cache_bytes=prefix_cache_bytes)
        self.tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, fingerprint.name)
        self.end_ids = () if ignore_end else end_token_ids(model, tokenizer)
        self._fingerprint = fingerprint
        # Two passes at a time would meet each other's rotations there.
        self._lease = _lease(self.network.device, overlap=overlap and not moving_rotations(model))
        self._berths = Berths(partial(spare_bytes, self.network.device))
        self.kv_heads = kv_heads
        self.draws_itself = drawer is None
        self._twins: dict[str, Network] = {}
        self._making = threading.Lock()
        self._serving: Drawing = (drawer or partial(Serving, join_window=join_window))(
            self.network,
            self._lease,
            end_ids=self.end_ids,
            embed=self._row_embeddings,
            finish=self._generation,
            context_length=_context_length(model),
            max_rows=max_batch_rows,
        )

    @property
    def fingerprint(self) -> ModelFingerprint:
        return self._fingerprint

    @property
    def context_length(self) -> int:
        return self._serving.context_length

    def twin(self, weights: str) -> Network:
        """The network with rounded weights, see ``twins``: made when first asked for, and shared by all memories.

        Raises ``ModelError`` where there can be none.
        """
        with self._making:
            if weights not in self._twins:
                self._twins[weights] = twin_of(self.network, weights)
            return self._twins[weights]

    # --- text in -----------------------------------------------------------------------------------------

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a chat with the generation prompt.

        Raises ``InputError`` when no token would be left, and as ``ChatTemplate.encode``.
        """
        ids = self._template.encode(messages)
        self._check_length(len(ids))
        return ids

    def text_embeddings(self, text: str) -> torch.Tensor:
        """Input embeddings (T, E) of plain text without template: what a memory begins as and is found by.

        Raises ``InputError`` when there is no token, more than the model reads, or half a character.
        """
        refuse_half_characters(text, "the question")
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError("the question is empty: expected some text")
        self._check_length(len(ids))  # before a book of it is embedded
        return self.network.embed(ids)

    def _check_length(self, tokens: int) -> None:
        if tokens >= self.context_length:
            raise InputError(
                f"the question takes {tokens} tokens, more than the model's context of "
                f"{self.context_length}: shorten it or use a model with a longer context"
            )

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """The text of generated ids without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    # --- text out ----------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        """Queue one row. Cancelling the future takes the row out, also while it is being generated."""
        self._check(request)
        return self._serving.submit(request)

    def stream(self, request: GenerationRequest) -> TextStream:
        """Queue one row and have its text piece by piece, as it is drawn."""
        self._check(request)
        tokens: Tokens = queue.SimpleQueue()
        return TextStream(self._serving.submit(request, tokens), tokens, self.decode_text, self._generation)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        futures = [self.submit(request) for request in requests]
        return [future.result() for future in futures]

    def sample(self, start: Start, rows: Sequence[Row], cancelled: Callable[[], bool]) -> list[Row]:
        """Draw the rollouts of one group, beside whatever else is in flight; they give way to answers.

        Raises ``JobCancelled`` within a token or so of ``cancelled()``.
        """
        if start.prefix.network is not self.network:
            return self._draw(start, rows, cancelled)
        replies = self._serving.submit_group(start, rows)
        try:
            while wait(replies, timeout=_LOOK_SECONDS).not_done:
                if cancelled():
                    raise JobCancelled("stopped among its rollouts, as asked")
        finally:
            for reply in replies:
                reply.cancel()  # harmless for those that are done
        return [reply.result() for reply in replies]

    def _draw(self, start: Start, rows: Sequence[Row], cancelled: Callable[[], bool]) -> list[Row]:
        """On the network that has read ``start``, in a batch of its own; answers go between its tokens."""
        decoder, group = Decoder(start.prefix.network, self.end_ids), list(rows)
        decoder.join(start.prefix, start.logits_1V, group)
        while decoder.rows:
            if cancelled():
                raise JobCancelled("stopped among its rollouts, as asked")
            self.compute(decoder.step)
        return group

    def berth(self, positions: int, cancelled: Callable[[], bool]) -> AbstractContextManager[None]:
        """In here a memory learns that keeps ``positions`` with their gradient; waits while there is no room for it
        beside others. Raises ``JobCancelled`` while it waits."""
        per_position, _ = self.compute(lambda: self.network.gradient_bytes)
        return self._berths.berth(positions * per_position, cancelled)

    def training(self) -> AbstractContextManager[None]:
        """Hold the model alone for work on the caller's own thread; ``compute`` is quicker."""
        return self._lease.alone()

    def compute(self, work: Callable[[], _Result]) -> _Result:
        """``work()`` while nothing else uses the model, or nothing but rows in flight with ``overlap``; after answers
        that wait. See ``ComputeThread.run``."""
        with self._lease.learning() as run:
            return run(work)

    def close(self) -> None:
        """Finish what is queued and stop the threads that answer and compute. Idempotent."""
        self._serving.close()
        self._lease.close()

    # --- retrieval ---------------------------------------------------------------------------------------

    def query(self, question: str, kind: KeyKind) -> Vector:
        embeds_TE = self.text_embeddings(question)
        if kind is KeyKind.INPUT:
            return keys.input_key(embeds_TE)
        with self._lease.answering() as run:
            return run(partial(keys.kv_query, self.network, embeds_TE, kv_heads=self.kv_heads))

    def keys(self, prompt: SoftPrompt) -> MemoryKeys:
        return self.keys_of(prompt.prompt_VE.to(self.network.device))

    def keys_of(self, embeds_TE: torch.Tensor) -> MemoryKeys:
        """Both keys of embeddings (T, E): a soft prompt's, or a question's."""
        kv = None
        if keys.has_kv_keys(self.network):
            kv = self.compute(partial(keys.kv_key, self.network, embeds_TE, kv_heads=self.kv_heads))
        return MemoryKeys(input=keys.input_key(embeds_TE), kv=kv)

    def keys_of_states(self, initial_VE: torch.Tensor, keys_LHVD: torch.Tensor) -> MemoryKeys:
        """Keys of a memory that began as embeddings (V, E) and became attention keys; where their rotation is not
        known, as it began."""
        if self.network.why_slow is not None:
            return self.keys_of(initial_VE)
        kv = keys.states_key(self.network, keys_LHVD, kv_heads=self.kv_heads)
        return MemoryKeys(input=keys.input_key(initial_VE), kv=kv)

    def _check(self, request: GenerationRequest) -> None:
        prefix = request.prefix
        if prefix is not None and (why := misfit(self.network, prefix)):
            raise ModelMismatch(
                f"memory {prefix.memory_id} {why} ({self._fingerprint.name!r}): use the model it was made with"
            )
        rows = 0 if prefix is None else prefix.virtual_tokens
        length = rows + len(request.prompt_ids)
        if not request.prompt_ids or request.max_new_tokens < 1:
            raise InputError("a generation needs at least one prompt token and one new token")
        if length + 1 > self.context_length:
            raise InputError(
                f"the prompt takes {length} positions ({rows} of them soft), more than the model's context of "
                f"{self.context_length}: shorten the question"
            )

    def _row_embeddings(self, request: GenerationRequest) -> torch.Tensor:
        text_TE = self.network.embed(request.prompt_ids)
        if not isinstance(request.prefix, SoftPrompt):
            return text_TE  # other memories are no embeddings
        prompt_VE = request.prefix.prompt_VE.to(self.network.device, self.network.dtype)
        return torch.cat([prompt_VE, text_TE])

    def _generation(self, row: Row, seconds: float) -> Generation:
        if not all(map(math.isfinite, row.logprobs)):
            raise ModelError(
                "the model's logits are not finite (NaN or infinity), so its answer means nothing: "
                "load it with `dtype` float32, or retire the memory that was used"
            )
        return Generation(
            text=self.decode_text(row.tokens),
            token_ids=tuple(row.tokens),
            mean_logprob=sum(row.logprobs) / len(row.logprobs),
            self_certainty=sum(row.certainties) / len(row.certainties),
            finished=row.finished,
            seconds=seconds,
        )


def _lease(device: torch.device, *, overlap: bool) -> ModelLease:
    if overlap and device.type == "cuda":
        drawer, computer = (ComputeThread(Lane(device, urgent=urgent)) for urgent in (True, False))
        return ModelLease(overlap=True, drawer=drawer, computer=computer)
    return ModelLease(overlap=overlap)


def _context_length(model: PreTrainedModel) -> int:
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends an answer: the generation config's and the tokenizer's own."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(tokenizer.eos_token_id)
    return tuple(sorted(int(token) for token in ids if token is not None))
