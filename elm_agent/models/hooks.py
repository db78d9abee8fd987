"""Forward hooks for one thread's passes: another thread that uses the same modules meanwhile does not meet them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import torch
from torch import nn

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor | None]

_changing = threading.Lock()
_keys = count(-1, -1)  # torch's own count up from 0


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Passes of this thread in here call the hook of each module; what it returns, if anything, is the output."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(_placed(module, _only_here(hook)))
        yield


def _placed(module: nn.Module, hook: Hook) -> Callable[[], None]:
    """Returns what takes it away again.

    A pass of another thread may just now go through the module's hooks, so they are replaced, not changed.
    """
    key = next(_keys)
    with _changing:
        module._forward_hooks = OrderedDict({**module._forward_hooks, key: hook})

    def remove() -> None:
        with _changing:
            module._forward_hooks = OrderedDict((k, v) for k, v in module._forward_hooks.items() if k != key)

    return remove


def _only_here(hook: Hook) -> Hook:
    here = threading.get_ident()

    def call(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        return hook(module, inputs, output) if threading.get_ident() == here else None

    return call
