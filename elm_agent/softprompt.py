"""The soft prompt: V vectors of width E in float32, as a tensor and as bytes. Other kinds of memory: ``adapters``.

The file form is safetensors with the single tensor ``prompt`` and no metadata: bytes of equal prompts are
equal, so a content hash is an identity. Provenance lives in the database. Never pickle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from elm_agent.errors import TensorCorrupt


@dataclass(frozen=True, slots=True, eq=False)
class SoftPrompt:
    """A trained prompt. ``prompt_VE``: float32, shape (V, E), on CPU, contiguous, finite."""

    parameterisation: ClassVar[str] = "soft_prompt"

    prompt_VE: torch.Tensor
    memory_id: str | None = None

    def __post_init__(self) -> None:
        check_prompt(self.prompt_VE)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"prompt": self.prompt_VE}

    @property
    def virtual_tokens(self) -> int:
        return self.prompt_VE.shape[0]

    @property
    def width(self) -> int:
        return self.prompt_VE.shape[1]


def check_prompt(prompt_VE: torch.Tensor) -> None:
    """Raise ``TensorCorrupt`` unless the tensor is float32, (V, E) with V, E >= 1, and finite."""
    if prompt_VE.ndim != 2 or 0 in prompt_VE.shape:
        raise TensorCorrupt(f"a soft prompt has shape (V, E); got {tuple(prompt_VE.shape)}")
    check_numbers(prompt_VE, "a soft prompt")


def check_numbers(tensor: torch.Tensor, what: str) -> None:
    """Raise ``TensorCorrupt`` unless every number is a finite float32."""
    if tensor.dtype != torch.float32:
        raise TensorCorrupt(f"{what} is float32; got {tensor.dtype}")
    if not bool(torch.isfinite(tensor).all()):
        raise TensorCorrupt(f"{what} is finite; got NaN or infinity")


def named(tensors: Mapping[str, torch.Tensor], *names: str) -> list[torch.Tensor]:
    """The tensors of exactly these names, in this order. Raises ``TensorCorrupt`` for more, fewer or others."""
    if set(tensors) != set(names):
        expected = "one tensor named 'prompt'" if names == ("prompt",) else f"tensors named {', '.join(names)}"
        raise TensorCorrupt(f"expected {expected}; got {str(sorted(tensors)[:5])[:200]}")
    return [tensors[name] for name in names]


def to_bytes(prompt_VE: torch.Tensor) -> bytes:
    """The safetensors bytes of a prompt, the same for equal prompts."""
    prompt_VE = prompt_VE.detach().to("cpu", torch.float32).contiguous()
    check_prompt(prompt_VE)
    return save({"prompt": prompt_VE})


def from_bytes(data: bytes, *, shape: tuple[int, int], memory_id: str | None = None) -> SoftPrompt:
    """The prompt in ``data``, checked against the ``shape`` (V, E) that its record states.

    Raises:
        TensorCorrupt: not safetensors, not exactly one tensor named ``prompt``, another shape or dtype.
    """
    return prompt_of(tensors_of(data), shape=shape, memory_id=memory_id)


def tensors_of(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name. Raises ``TensorCorrupt`` for anything else."""
    try:
        return load(data)
    except SafetensorError as error:
        raise TensorCorrupt(f"not a safetensors file: {str(error)[:200]}") from None


def prompt_of(
    tensors: Mapping[str, torch.Tensor], *, shape: tuple[int, int], memory_id: str | None = None
) -> SoftPrompt:
    """``from_bytes`` of what is read already."""
    (prompt_VE,) = named(tensors, "prompt")
    if tuple(prompt_VE.shape) != shape:
        raise TensorCorrupt(f"expected a prompt of shape {shape}; got {tuple(prompt_VE.shape)}")
    return SoftPrompt(prompt_VE, memory_id)


def content_digest(data: bytes) -> str:
    """``sha256:<hex>`` of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
