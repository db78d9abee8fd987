"""Forward hooks for one thread's passes: another thread that uses the same modules meanwhile does not meet them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor | None]


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Passes of this thread in here call the hook of each module; what it returns, if anything, is the output.

    Hooks may come and go while another thread is in a pass: a module copies its hooks before it calls them
    (``torch.nn.Module._call_impl``).
    """
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(_only_here(hook)).remove)
        yield


def _only_here(hook: Hook) -> Hook:
    here = threading.get_ident()

    def call(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        return hook(module, inputs, output) if threading.get_ident() == here else None

    return call
