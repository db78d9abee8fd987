"""What a memory is made of when it is no soft prompt, and each kind as bytes. METHOD section 1 says what they mean.

The file form is that of soft prompts: safetensors with exactly the named tensors, float32, no metadata; memories
that are equal have equal bytes. Tensors are known by their names, which are never used as paths. Never pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from safetensors.torch import save

from elm_agent.errors import TensorCorrupt
from elm_agent.records import Recipe
from elm_agent.softprompt import SoftPrompt, check_numbers, named, prompt_of, tensors_of

PROJECTIONS = (
    tuple(f"self_attn.{name}_proj" for name in "qkvo") + tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),  # GPT-2, where one matrix makes query, key and value
)
"""Every attention and MLP projection of a layer by its path there, for each family that is known."""


@dataclass(frozen=True, slots=True, eq=False)
class KeyValues:
    """``prefix``: keys and values of V positions in each of L layers with H key heads, as attention meets them.

    ``keys_LHVD``, ``values_LHVD``: float32, on CPU, contiguous, finite; keys with their rotation, positions from 0.
    """

    parameterisation: ClassVar[str] = "prefix"

    keys_LHVD: torch.Tensor
    values_LHVD: torch.Tensor
    memory_id: str | None = None

    def __post_init__(self) -> None:
        for states in self.tensors.values():
            if states.ndim != 4 or 0 in states.shape:
                raise TensorCorrupt(f"keys and values have shape (L, H, V, D); got {tuple(states.shape)}")
            check_numbers(states, "a prefix")
        if self.keys_LHVD.shape[:3] != self.values_LHVD.shape[:3]:
            raise TensorCorrupt(
                f"keys and values are of the same layers, heads and positions; got {tuple(self.keys_LHVD.shape)} and "
                f"{tuple(self.values_LHVD.shape)}"
            )

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"keys": self.keys_LHVD, "values": self.values_LHVD}

    @property
    def virtual_tokens(self) -> int:
        return self.keys_LHVD.shape[2]

    @property
    def width(self) -> None:
        """Keys and values do not say how wide the embeddings are."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LowRank:
    """``lora``: to every projection W of every layer ``scale`` * B A is added (arXiv 2106.09685).

    ``tensors``: by name of ``PROJECTIONS``, "<name>.A" (L, rank, in) and "<name>.B" (L, out, rank), float32, on CPU,
    finite. It takes no positions.
    """

    parameterisation: ClassVar[str] = "lora"

    tensors: Mapping[str, torch.Tensor]
    scale: float
    memory_id: str | None = None

    def __post_init__(self) -> None:
        expected = [{f"{name}.{half}" for name in family for half in "AB"} for family in PROJECTIONS]
        if set(self.tensors) not in expected:
            raise TensorCorrupt(f"expected A and B of every projection; got {str(sorted(self.tensors)[:5])[:200]}")
        for name, matrix in self.tensors.items():
            if matrix.ndim != 3 or 0 in matrix.shape:
                raise TensorCorrupt(f"{name} has shape (L, rank, in) or (L, out, rank); got {tuple(matrix.shape)}")
            check_numbers(matrix, "a low-rank memory")
        forms = {(len(matrix), matrix.shape[1 if name[-1] == "A" else 2]) for name, matrix in self.tensors.items()}
        if len(forms) != 1:
            raise TensorCorrupt(f"all A and B have the same (layers, rank); got {str(sorted(forms))[:200]}")

    @property
    def rank(self) -> int:
        return self._first.shape[1]

    @property
    def virtual_tokens(self) -> int:
        return 0

    @property
    def width(self) -> int:
        """E: what the first projection of a layer reads."""
        return self._first.shape[2]

    @property
    def _first(self) -> torch.Tensor:
        return next(self.tensors[f"{names[0]}.A"] for names in PROJECTIONS if f"{names[0]}.A" in self.tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """``full``: a whole network of its own, trained. For studies: it has no bytes and no place in a bank."""

    parameterisation: ClassVar[str] = "full"

    network: torch.nn.Module

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every weight once, also where embeddings and head share one."""
        return {name: weight.detach() for name, weight in self.network.named_parameters()}

    @property
    def virtual_tokens(self) -> int:
        return 0


Kept = SoftPrompt | KeyValues | LowRank
"""What a bank keeps of a memory."""


def numbers_of(memory: Kept | Weights) -> int:
    """How many numbers it consists of."""
    return sum(tensor.numel() for tensor in memory.tensors.values())


def bytes_of(memory: Kept | Weights) -> int:
    """Bytes of its numbers."""
    return sum(tensor.nbytes for tensor in memory.tensors.values())


def to_bytes(kept: Kept) -> bytes:
    """The safetensors bytes of a memory, the same for equal ones."""
    return save({name: tensor.contiguous() for name, tensor in kept.tensors.items()})


def from_bytes(data: bytes, *, recipe: Recipe, virtual_tokens: int, width: int, memory_id: str | None = None) -> Kept:
    """The memory in ``data``, checked against the recipe, the positions and the width E that its record states.

    Raises:
        TensorCorrupt: not safetensors, or other tensors, shapes or numbers than such a memory has.
    """
    return from_tensors(
        tensors_of(data), recipe=recipe, virtual_tokens=virtual_tokens, width=width, memory_id=memory_id
    )


def from_tensors(
    tensors: Mapping[str, torch.Tensor],
    *,
    recipe: Recipe,
    virtual_tokens: int,
    width: int,
    memory_id: str | None = None,
) -> Kept:
    """``from_bytes`` of what is read already."""
    match recipe.parameterisation:
        case "soft_prompt":
            return prompt_of(tensors, shape=(virtual_tokens, width), memory_id=memory_id)
        case "prefix":
            keys_LHVD, values_LHVD = named(tensors, "keys", "values")
            prefix = KeyValues(keys_LHVD, values_LHVD, memory_id)
            if prefix.virtual_tokens != virtual_tokens:
                raise TensorCorrupt(f"expected a prefix of {virtual_tokens} positions; got {prefix.virtual_tokens}")
            return prefix
        case "lora":
            matrices = LowRank(dict(tensors), recipe.lora_scale, memory_id)
            if (matrices.rank, matrices.width) != (recipe.lora_rank, width):
                raise TensorCorrupt(
                    f"expected matrices of rank {recipe.lora_rank} for width {width}; got rank {matrices.rank} for "
                    f"{matrices.width}"
                )
            return matrices
    raise TensorCorrupt(f"no bank keeps a memory with parameterisation {str(recipe.parameterisation)[:80]!r}")
