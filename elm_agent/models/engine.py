"""The one engine for prompts: whoever wants text submits a row, rows that arrive together run as one batch.

Knows the network, the tokenizer and the lease; knows nothing of memories' records, stores or routes.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from elm_agent.errors import InputError, ModelError, ModelMismatch
from elm_agent.models import keys
from elm_agent.models.decoding import Row, decode
from elm_agent.models.lease import ModelLease
from elm_agent.models.network import Network
from elm_agent.protocols import GenerationRequest, Message
from elm_agent.records import Generation, KeyKind, MemoryKeys, ModelFingerprint, Vector
from elm_agent.softprompt import SoftPrompt

_Pending = tuple[GenerationRequest, "Future[Generation]"]


class LocalModel:
    """A ``LanguageModel`` on transformers. Safe from any thread; close it to stop its batching thread.

    Args:
        model: a causal language model; put into eval mode, its parameters frozen.
        tokenizer: its tokenizer; without a chat template the messages' contents are joined by blank lines.
        fingerprint: what memories made with it depend on.
        max_batch_rows: most rows that generate together.
        join_window: seconds that the first request of a batch waits for company.
        kv_heads: pool attention heads in kv keys ("mean", the paper) or keep them ("keep").
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
    ) -> None:
        self.network = Network(model)
        self.tokenizer = tokenizer
        self.end_ids = end_token_ids(model, tokenizer)
        self._fingerprint = fingerprint
        self._lease = ModelLease()
        self._max_batch_rows = max_batch_rows
        self._join_window = join_window
        self.kv_heads = kv_heads
        self._pending: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def fingerprint(self) -> ModelFingerprint:
        return self._fingerprint

    @property
    def context_length(self) -> int:
        config = self.network.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2**31)

    # --- text in -----------------------------------------------------------------------------------------

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a chat with the generation prompt.

        Raises ``InputError`` when no token would be left, or for half a character.
        """
        for message in messages:
            _check_characters(message["content"])
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer("\n\n".join(m["content"] for m in messages) + "\n\n")["input_ids"]
        self._check_length(len(ids))
        return tuple(ids)

    def text_embeddings(self, text: str) -> torch.Tensor:
        """Input embeddings (T, E) of plain text without template: what a memory begins as and is found by.

        Raises ``InputError`` when there is no token, more than the model reads, or half a character.
        """
        _check_characters(text)
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
        self._check(request)
        future: Future[Generation] = Future()
        with self._starting:  # so that nothing is queued behind the end that ``close`` puts there
            self._start()
            self._pending.put((request, future))
        return future

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        futures = [self.submit(request) for request in requests]
        return [future.result() for future in futures]

    def training(self) -> AbstractContextManager[None]:
        return self._lease.training()

    def close(self) -> None:
        """Finish what is queued and stop the batching thread. Idempotent."""
        with self._starting:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._pending.put(None)
            thread.join()

    # --- retrieval ---------------------------------------------------------------------------------------

    def query(self, question: str, kind: KeyKind) -> Vector:
        embeds_TE = self.text_embeddings(question)
        if kind is KeyKind.INPUT:
            return keys.input_key(embeds_TE)
        with self._lease.answering():
            return keys.kv_query(self.network, embeds_TE, kv_heads=self.kv_heads)

    def keys(self, prompt: SoftPrompt) -> MemoryKeys:
        prompt_VE = prompt.prompt_VE.to(self.network.device)
        kv = None
        if keys.has_kv_keys(self.network):
            with self._lease.training():
                kv = keys.kv_key(self.network, prompt_VE, kv_heads=self.kv_heads)
        return MemoryKeys(input=keys.input_key(prompt_VE), kv=kv)

    # --- the batching thread -----------------------------------------------------------------------------

    def _check(self, request: GenerationRequest) -> None:
        prefix = request.prefix
        if prefix is not None and prefix.width != self.network.width:
            raise ModelMismatch(
                f"memory {prefix.memory_id} has width {prefix.width}, the model {self._fingerprint.name!r} has "
                f"{self.network.width}: use the model it was made with"
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

    def _start(self) -> None:
        if self._closed:
            raise ModelError("the model is closed: open a new runtime")
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="elm-engine", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while (first := self._pending.get()) is not None:
            batch = self._gather(first)
            batch = [(request, future) for request, future in batch if future.set_running_or_notify_cancel()]
            if batch:
                self._run(batch)

    def _gather(self, first: _Pending) -> list[_Pending]:
        batch = [first]
        deadline = time.monotonic() + self._join_window
        while len(batch) < self._max_batch_rows:
            try:
                item = self._pending.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if item is None:  # closing: serve what came before
                self._pending.put(None)
                break
            batch.append(item)
        return batch

    def _run(self, batch: list[_Pending]) -> None:
        try:
            with self._lease.answering():
                generations = self._generate([request for request, _ in batch])
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers, who get it from their futures
            traceback.clear_frames(error.__traceback__)  # they hold the batch's tensors: memory for what comes next
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
        else:
            for (_, future), generation in zip(batch, generations, strict=True):
                future.set_result(generation)
            return
        for item in batch:  # one row must not cost the others their answers
            self._run([item])

    @torch.no_grad()
    def _generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        started = time.perf_counter()
        prefix, logits_BV = self.network.read([self._row_embeddings(request) for request in requests])
        rows = [
            Row(
                max_new_tokens=min(request.max_new_tokens, self.context_length - int(prefix.mask_BL[index].sum())),
                temperature=request.temperature,
                seed=request.seed,
            )
            for index, request in enumerate(requests)
        ]
        decode(self.network, prefix, logits_BV, rows, self.end_ids)
        seconds = time.perf_counter() - started
        return [self._generation(row, seconds) for row in rows]

    def _row_embeddings(self, request: GenerationRequest) -> torch.Tensor:
        text_TE = self.network.embed(request.prompt_ids)
        if request.prefix is None:
            return text_TE
        prompt_VE = request.prefix.prompt_VE.to(self.network.device, self.network.dtype)
        return torch.cat([prompt_VE, text_TE])

    def _generation(self, row: Row, seconds: float) -> Generation:
        return Generation(
            text=self.decode_text(row.tokens),
            token_ids=tuple(row.tokens),
            mean_logprob=sum(row.logprobs) / len(row.logprobs),
            self_certainty=sum(row.certainties) / len(row.certainties),
            finished=row.finished,
            seconds=seconds,
        )


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends an answer: the generation config's and the tokenizer's own."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(tokenizer.eos_token_id)
    return tuple(sorted(int(token) for token in ids if token is not None))


def _check_characters(text: str) -> None:
    """A lone surrogate has no bytes, so no tokenizer takes it."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("the question holds half a character (a lone surrogate): expected text that UTF-8 can write")
