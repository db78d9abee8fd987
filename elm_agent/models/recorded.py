"""One token for every row in flight on a GPU: a step's kernels are recorded once, as a CUDA graph, and then replayed.

A step of a small model is hundreds of small kernels, and launching them takes longer than running them. A graph is
launched at once, but does the same thing at the same addresses: so it has a fixed number of rows, the next power of
two, and looks at all positions that the slots have room for. When the slots move, graphs are recorded anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from elm_agent.models.slots import Slots
from elm_agent.models.step import fixed_step

Recorder = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]
"""Gives a way to do something again, and the tensor in which its result will then lie."""

_WARM_UPS = 3  # before a recording, as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks


def cuda_graph(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """A ``Recorder``. What ``run`` writes, it writes several times."""
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU meanwhile, and one of them may have the stream that torch would take.
    now = torch.cuda.current_stream()
    own = None if now == torch.cuda.default_stream() else now
    with torch.cuda.graph(graph, stream=own, capture_error_mode="thread_local"):
        result = run()
    return graph.replay, result


@dataclass(frozen=True, slots=True)
class _Recording:
    """``replay`` reads these tokens into these places and leaves its logits there."""

    tokens_B: torch.Tensor
    lengths_B: torch.Tensor
    replay: Callable[[], None]
    logits_BV: torch.Tensor


class RecordedStep:
    """``step`` for one token of every row, of a network for which ``why_unknown`` is None."""

    def __init__(self, model: PreTrainedModel, record: Recorder = cuda_graph) -> None:
        self._model = model
        self._record = record
        self._recordings: dict[int, _Recording] = {}
        self._where: list[tuple[object, ...]] = []

    @torch.no_grad()
    def __call__(self, slots: Slots, tokens_B: torch.Tensor) -> torch.Tensor:
        """Append a token to every row of ``slots``. Returns logits (B, vocabulary), float32 or wider."""
        slots.grow()
        rows = 1 << (slots.rows - 1).bit_length()
        slots.widen(rows)
        where = [_place(tensor) for tensor in (*slots.keys, *slots.values)]
        if where != self._where:
            self._recordings, self._where = {}, where
        if (known := self._recordings.get(rows)) is None:
            known = self._recordings[rows] = self._recorded(slots, tokens_B, rows)
        else:
            known.tokens_B[: slots.rows] = tokens_B
            known.lengths_B[: slots.rows] = slots.lengths_B
            known.replay()
        slots.lengths_B = slots.lengths_B + 1
        logits_BV = known.logits_BV[: slots.rows]
        return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32), copy=True)

    def _recorded(self, slots: Slots, tokens_B: torch.Tensor, rows: int) -> _Recording:
        """Record the step that is due, and do it. Slots that are not in use write at their first position."""
        tokens, lengths = tokens_B.new_zeros(rows), slots.lengths_B.new_zeros(rows)
        tokens[: slots.rows] = tokens_B
        lengths[: slots.rows] = slots.lengths_B
        replay, logits_BV = self._record(partial(fixed_step, self._model, slots, tokens, lengths))
        replay()
        return _Recording(tokens, lengths, replay, logits_BV)


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    """What a recording takes for granted: other slots may lie at the same address and be cut otherwise."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
