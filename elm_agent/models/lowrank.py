"""Low-rank matrices beside the frozen projections: each row of a batch may have its own, or none.

Knows modules and rows; knows nothing of memories, questions or training. The matrices are added by forward hooks that
live as long as one pass, so whoever calls the projections, transformers or ``step``, meets them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from elm_agent.adapters import PROJECTIONS
from elm_agent.errors import InputError
from elm_agent.models.hooks import Hook, hooked


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """``scale`` * B A beside every projection. ``matrices``: "<name>.A" (L, rank, in), "<name>.B" (L, out, rank)."""

    matrices: Mapping[str, torch.Tensor]
    scale: float

    @property
    def rank(self) -> int:
        return next(matrix.shape[1] for name, matrix in self.matrices.items() if name.endswith(".A"))

    def detached(self, dtype: torch.dtype) -> Adapter:
        """The same numbers without gradient."""
        return Adapter({name: matrix.detach().to(dtype) for name, matrix in self.matrices.items()}, self.scale)

    def beside(self, name: str, layer: int, inputs: torch.Tensor) -> torch.Tensor:
        """What is added to the output of a projection: (..., out) for inputs (..., in)."""
        down, up = self.matrices[f"{name}.A"][layer], self.matrices[f"{name}.B"][layer]
        return (inputs @ down.to(inputs.dtype).t()) @ up.to(inputs.dtype).t() * self.scale


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """The adapters of a batch as one of rank R, their sum, of which each row sees its own part alone.

    ``matrices``: "<name>.A" (L, R, in) and "<name>.B" (L, out, R) with the scales in it, contiguous. ``seen_BR``:
    bool. ``finite``: no number of one can reach the rows of another, as 0 times infinity would.
    """

    adapters_B: tuple[Adapter | None, ...]
    adapters: tuple[Adapter, ...]
    matrices: Mapping[str, torch.Tensor]
    seen_BR: torch.Tensor
    finite: bool


def joint(adapters_B: Sequence[Adapter | None], before: Joint | None = None) -> Joint:
    """What is beside these rows, of which one at least has an adapter. ``before`` saves copies where it has them."""
    rows, distinct = tuple(adapters_B), tuple(dict.fromkeys(one for one in adapters_B if one is not None))
    if before is not None and before.adapters_B == rows:  # adapters are told apart by identity
        return before
    if before is not None and set(distinct) <= set(before.adapters):
        return replace(before, adapters_B=rows, seen_BR=_seen(rows, before.adapters))
    matrices = _together(distinct)
    finite = all(bool(matrix.isfinite().all()) for matrix in matrices.values())
    return Joint(rows, distinct, matrices, _seen(rows, distinct), finite)


def _seen(rows: Sequence[Adapter | None], adapters: Sequence[Adapter]) -> torch.Tensor:
    owners = [adapter for adapter in adapters for _ in range(adapter.rank)]
    return torch.tensor([[owner is own for owner in owners] for own in rows])


def _together(adapters: Sequence[Adapter]) -> dict[str, torch.Tensor]:
    matrices = {}
    for name in adapters[0].matrices:
        scaled, axis = (True, 2) if name.endswith(".B") else (False, 1)
        parts = [one.matrices[name] * one.scale if scaled else one.matrices[name] for one in adapters]
        matrices[name] = torch.cat(parts, dim=axis)
    return matrices


def projections(model: PreTrainedModel) -> dict[str, list[nn.Module]]:
    """By name, the projection of each layer. Raises ``InputError`` where layers have other linear modules."""
    count, base = model.config.get_text_config().num_hidden_layers, model.base_model
    stacks = [module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    found = [
        {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)}
        for layer in (stacks[0] if stacks else ())
    ]
    for names in PROJECTIONS:
        if found and all(set(layer) == set(names) for layer in found):
            return {name: [layer[name] for layer in found] for name in names}
    others = sorted({name for layer in found for name in layer} - {name for names in PROJECTIONS for name in names})
    raise InputError(
        f"low-rank memories need layers with the projections of Llama or GPT-2; {model.config.model_type!r} has "
        f"{', '.join(others[:4]) or 'not all of them'}: use the parameterisation 'soft_prompt'"
    )


def sizes(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a projection."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return int(module.weight.shape[1]), int(module.weight.shape[0])  # type: ignore[index]


@contextmanager
def beside(modules: Mapping[str, Sequence[nn.Module]], adapters_B: Sequence[Adapter | None]) -> Iterator[None]:
    """Passes in here add the adapter of each row of the batch to what ``modules``, the ``projections``, give."""
    groups = _groups(adapters_B, next(next(iter(modules.values()))[0].parameters()).device)
    placed = ((module, name, layer) for name, some in modules.items() for layer, module in enumerate(some))
    with hooked((module, _hook(name, layer, groups)) for module, name, layer in placed):
        yield


_Group = tuple[Adapter, torch.Tensor | None]  # an adapter and the indices of its rows; None: all rows


def _groups(adapters_B: Sequence[Adapter | None], device: torch.device) -> list[_Group]:
    rows: dict[Adapter, list[int]] = {}  # adapters are told apart by identity
    for row, adapter in enumerate(adapters_B):
        if adapter is not None:
            rows.setdefault(adapter, []).append(row)
    everyone = len(adapters_B)
    return [
        (adapter, None if len(mine) == everyone else torch.tensor(mine, device=device))
        for adapter, mine in rows.items()
    ]


def _hook(name: str, layer: int, groups: Sequence[_Group]) -> Hook:
    def add(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for adapter, rows_N in groups:
            if rows_N is None:
                output = output + adapter.beside(name, layer, inputs[0])
            else:
                output = output.index_add(0, rows_N, adapter.beside(name, layer, inputs[0][rows_N]))
        return output

    return add
