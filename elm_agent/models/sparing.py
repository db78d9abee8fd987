"""Passes that keep of each layer only what goes into it, and compute the rest again for the gradient: less memory.

The numbers are the same, and so is the gradient; the time of a pass comes on top. Knows layers and what they keep of
the rows; knows nothing of losses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache


@contextmanager
def recomputed(
    layers: Sequence[nn.Module], cache: DynamicCache, beside: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """One pass in here; ``cache`` then holds what it held before. ``beside``: in which layers are computed again."""
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
