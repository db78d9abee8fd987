"""Passes that keep less for their gradient, and compute it again: of a layer what goes into it, or all but a little.

The numbers are the same, and so is the gradient. Knows layers and what they keep of rows; knows nothing of losses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache


@contextmanager
def recomputed(
    layers: Sequence[nn.Module], cache: DynamicCache, beside: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """One pass in here keeps only what goes into its layers; the time of a pass without gradient comes on top.

    ``cache`` then holds what it held before. ``beside``: in which layers are computed again.
    """
    with ExitStack() as stack:
        for layer, kept in zip(layers, cache.layers, strict=True):
            layer.forward = partial(_computed, layer.forward, kept, beside, threading.get_ident())
            stack.callback(delattr, layer, "forward")
        yield


def _computed(
    plain: Callable[..., torch.Tensor],
    kept: Any,
    beside: Callable[[], AbstractContextManager[None]],
    thread: int,
    *inputs: Any,
    **options: Any,
) -> torch.Tensor:
    if threading.get_ident() != thread:  # others use the layers meanwhile
        return plain(*inputs, **options)

    def run(*inputs: Any, **options: Any) -> torch.Tensor:
        before = kept.keys, kept.values
        try:
            return plain(*inputs, **options)
        finally:  # it will run again, and is to find what it finds now
            kept.keys, kept.values = before

    hidden_BTE: torch.Tensor = checkpoint(
        run,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing is drawn in a layer in eval mode
        context_fn=lambda: (nullcontext(), beside()),
        **options,
    )
    return hidden_BTE


@contextmanager
def without_gates(note: Callable[[torch.Tensor], None] = lambda _kept: None) -> Iterator[None]:
    """Passes in here keep what goes into SiLU and not what comes out of it, which is a fifth of all in a gated MLP's
    layers; other activations are kept as ever. ``note`` is told of each tensor that is kept."""

    def keep(tensor: torch.Tensor) -> torch.Tensor | _Gate:
        made_by = tensor.grad_fn
        gated = made_by is not None and made_by.name() == "SiluBackward0"
        kept = (made_by._saved_self if gated else tensor).detach()  # type: ignore[union-attr]
        note(kept)  # detached, for an operation that keeps its own result would else keep itself for ever
        return _Gate(kept) if gated else kept

    with saved_tensors_hooks(keep, lambda kept: silu(kept.into) if isinstance(kept, _Gate) else kept):
        yield


@dataclass(frozen=True, slots=True)
class _Gate:
    """What went into a SiLU, in the place of what came out of it."""

    into: torch.Tensor
