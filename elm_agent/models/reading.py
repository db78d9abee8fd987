"""How the network reads requests: each with the memory that is before its text, beside the network, or not there.

Knows the network and what memories are made of; knows nothing of text, leases or rows in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch

from elm_agent.adapters import Kept, KeyValues, LowRank
from elm_agent.errors import ModelMismatch
from elm_agent.models.lowrank import Adapter, sizes
from elm_agent.models.network import Network, Prefix
from elm_agent.protocols import GenerationRequest


class Reader:
    """Reads for one network."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._adapters: WeakKeyDictionary[LowRank, Adapter] = WeakKeyDictionary()

    def read(
        self,
        requests: Sequence[GenerationRequest],
        embed: Callable[[GenerationRequest], torch.Tensor],
        *,
        to_draw: bool = False,
    ) -> tuple[list[int], Prefix, torch.Tensor]:
        """Read those of the requests that the first one's batch takes: their indices, the prefix, the next logits.

        ``embed`` gives the embeddings (T, E) of a request, with its soft prompt if it has one. ``to_draw``: they are
        drawn next, so it may be done by what draws, without gradient. Keys and values of a request's own come before
        its pads, so such a one is read alone.
        """
        first = requests[0].prefix
        if isinstance(first, KeyValues):
            return [0], *self._network.read([embed(requests[0])], self.after(first))
        together = [n for n, request in enumerate(requests) if not isinstance(request.prefix, KeyValues)]
        adapters_B = [self._adapter(requests[n].prefix) for n in together]
        rows = [embed(requests[n]) for n in together]
        if not any(adapters_B):
            return together, *(self._network.read_to_draw(rows) if to_draw else self._network.read(rows))
        return together, *self._network.read(rows, self._network.begin(adapters_B=adapters_B))

    def after(self, memory: KeyValues) -> Prefix:
        """One row that has read nothing but the memory. Raises ``ModelMismatch`` where it is another model's."""
        form = [(*k.shape[::2], v.shape[2]) for k, v in zip(memory.keys_LHVD, memory.values_LHVD, strict=True)]
        own = self._network.states_form
        if form != own:
            raise ModelMismatch(
                f"memory {memory.memory_id} has {len(form)} layers with (key heads, widths) {form[0]}, the model "
                f"{len(own)} with {own[0]}: use the model it was made with"
            )
        keys_LHVD = memory.keys_LHVD.to(self._network.device, self._network.dtype)
        values_LHVD = memory.values_LHVD.to(self._network.device, self._network.dtype)
        return self._network.begin([(k[None], v[None]) for k, v in zip(keys_LHVD, values_LHVD, strict=True)])

    def _adapter(self, memory: Kept | None) -> Adapter | None:
        """One for each memory, so that rows with the same one are taken together."""
        if not isinstance(memory, LowRank):
            return None
        if memory not in self._adapters:
            where = self._network.device, self._network.dtype
            matrices = {name: matrix.to(*where) for name, matrix in memory.tensors.items()}
            self._adapters[memory] = Adapter(matrices, memory.scale)
        return self._adapters[memory]


def misfit(network: Network, memory: Kept) -> str | None:
    """Why a memory was not made for this network, in one phrase; None if it may have been. See ``Reader.after``."""
    if memory.width not in (None, network.width):
        return f"has width {memory.width}, the model has {network.width}"
    if isinstance(memory, LowRank):
        expected_sizes = {
            f"{name}.{half}": (len(modules), sizes(modules[0])[half == "B"])
            for name, modules in network.projections.items()
            for half in "AB"
        }
        got_sizes = {
            name: (matrix.shape[0], matrix.shape[1 if name.endswith(".B") else 2])
            for name, matrix in memory.tensors.items()
        }
        if got_sizes != expected_sizes:
            return "has matrices of other projections than the model"
    return None
