"""What is trained when a memory is learned, how the question is read with it, and what is kept of it (METHOD 1).

soft_prompt  V embeddings before the question. The paper's.
prefix       keys and values of every layer at V positions before the question, which begin as the question's own.
lora         B A beside every attention and MLP projection; B begins as zero, so the memory begins as the bare model.
full         a copy of the whole network, head and embeddings too. For studies alone: no bank keeps such a memory.

The training loop is the same for all, and so are records, clipping and AdamW. Trained tensors are at least float32.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from elm_agent.adapters import Kept, KeyValues, LowRank, Weights
from elm_agent.errors import InputError
from elm_agent.models.engine import LocalModel
from elm_agent.models.lowrank import Adapter, sizes
from elm_agent.models.network import Network, Prefix
from elm_agent.records import MemoryKeys, Recipe
from elm_agent.softprompt import SoftPrompt
from elm_agent.training import numerics


class Learning(ABC):
    """A memory while it is trained.

    ``parameters``: the leaves that are trained. ``network``: the one that reads with it and draws its completions.
    ``begins_bare``: before its first step it changes nothing.
    """

    begins_bare = False

    def __init__(self, model: LocalModel, question: str, recipe: Recipe, seed: int) -> None:
        self.model = model
        self.network: Network = model.network
        self.question_TE = model.text_embeddings(question)
        self.parameters = self._begin(recipe, seed)

    @abstractmethod
    def _begin(self, recipe: Recipe, seed: int) -> list[torch.Tensor]:
        """The leaves at the beginning, a function of question, recipe and seed."""

    def prepare(self) -> None:
        """Make what draws its completions, before anything is read: it takes most memory while it is made.

        The model is to be held.
        """
        _ = self.network.quick_step

    @abstractmethod
    def read(self, prompt_ids: Sequence[int]) -> tuple[Prefix, torch.Tensor]:
        """One row: the memory and then these tokens, and logits (1, vocabulary) after them, with gradient.

        The model is to be held.
        """

    def embeds(self, prompt_ids: Sequence[int]) -> torch.Tensor | None:
        """All that ``read`` reads, (T, E), for an engine that reads by itself; None where it is more than that."""
        del prompt_ids
        return None

    @abstractmethod
    def kept(self) -> Kept | Weights:
        """What it has become."""

    def keys(self) -> MemoryKeys:
        """What it is found by. Where the memory is neither embeddings nor keys: the bare question's activations."""
        return self.model.keys_of(self.question_TE)


class LearningPrompt(Learning):
    """``soft_prompt``."""

    def _begin(self, recipe: Recipe, seed: int) -> list[torch.Tensor]:
        del seed
        self.prompt_VE = numerics.initial_prompt(self.question_TE, recipe.virtual_tokens).requires_grad_(True)
        return [self.prompt_VE]

    def embeds(self, prompt_ids: Sequence[int]) -> torch.Tensor:
        return torch.cat([self.prompt_VE.to(self.network.dtype), self.network.embed(prompt_ids)])

    def read(self, prompt_ids: Sequence[int]) -> tuple[Prefix, torch.Tensor]:
        return self.network.read([self.embeds(prompt_ids)])

    def kept(self) -> SoftPrompt:
        return SoftPrompt(_stored(self.prompt_VE))

    def keys(self) -> MemoryKeys:
        return self.model.keys(self.kept())


class LearningPrefix(Learning):
    """``prefix``. Keys are trained as attention meets them, with the rotation of positions 0 to V - 1."""

    def _begin(self, recipe: Recipe, seed: int) -> list[torch.Tensor]:
        del seed
        self.initial_VE = numerics.initial_prompt(self.question_TE, recipe.virtual_tokens)
        with torch.no_grad():
            self.keys_LHVD, self.values_LHVD = self.model.compute(self._initial)
        return [self.keys_LHVD.requires_grad_(True), self.values_LHVD.requires_grad_(True)]

    def _initial(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the embeddings are to every layer, as attention meets it. To be held."""
        states = _states(self.network.read([self.initial_VE.to(self.network.dtype)])[0])
        if len({(keys.shape, values.shape) for keys, values in states}) != 1:
            raise InputError(
                f"parameterisation 'prefix' needs layers that keep alike keys and values of {len(self.initial_VE)} "
                f"positions; those of {self.network.model.config.model_type!r} differ: use 'soft_prompt'"
            )
        wide = torch.promote_types(self.network.dtype, torch.float32)
        return torch.cat([keys for keys, _ in states]).to(wide), torch.cat([values for _, values in states]).to(wide)

    def read(self, prompt_ids: Sequence[int]) -> tuple[Prefix, torch.Tensor]:
        dtype = self.network.dtype
        states = zip(self.keys_LHVD.to(dtype), self.values_LHVD.to(dtype), strict=True)
        begun = self.network.begin([(keys[None], values[None]) for keys, values in states])
        return self.network.read([self.network.embed(prompt_ids)], begun)

    def kept(self) -> KeyValues:
        return KeyValues(_stored(self.keys_LHVD), _stored(self.values_LHVD))

    def keys(self) -> MemoryKeys:
        return self.model.keys_of_states(self.initial_VE, self.keys_LHVD)


class LearningLowRank(Learning):
    """``lora``. A begins uniform in +-1 / sqrt(in), as in PEFT, drawn on the CPU from the memory's seed."""

    begins_bare = True

    def _begin(self, recipe: Recipe, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed % 2**63)
        wide = torch.promote_types(self.network.dtype, torch.float32)
        self.matrices = {}
        for name, modules in self.network.projections.items():
            (narrow, out), layers = sizes(modules[0]), len(modules)
            if any(sizes(module) != (narrow, out) for module in modules):
                raise InputError(
                    f"parameterisation 'lora' needs layers of one size; {name} differs: use 'soft_prompt'"
                )
            drawn_LRI = torch.rand(layers, recipe.lora_rank, narrow, generator=generator) * 2 - 1
            self.matrices[f"{name}.A"] = drawn_LRI.to(self.network.device, wide) / math.sqrt(narrow)
            self.matrices[f"{name}.B"] = drawn_LRI.new_zeros(layers, out, recipe.lora_rank).to(
                self.network.device, wide
            )
        self.adapter = Adapter(self.matrices, recipe.lora_scale)
        return [matrix.requires_grad_(True) for matrix in self.matrices.values()]

    def prepare(self) -> None:
        _ = self.network.quick_step_beside

    def read(self, prompt_ids: Sequence[int]) -> tuple[Prefix, torch.Tensor]:
        begun = self.network.begin(adapters_B=[self.adapter])
        return self.network.read([self.network.embed(prompt_ids)], begun)

    def kept(self) -> LowRank:
        return LowRank({name: _stored(matrix) for name, matrix in self.matrices.items()}, self.adapter.scale)


class LearningWeights(Learning):
    """``full``. Embeddings and head may be one tensor, as they are in the model."""

    begins_bare = True

    def _begin(self, recipe: Recipe, seed: int) -> list[torch.Tensor]:
        del recipe, seed
        wide = torch.promote_types(self.network.dtype, torch.float32)
        with self.model.training():  # alone: hooks of rows in flight are not to be copied
            copied = copy.deepcopy(self.network.model)
        self.network = Network(copied.to(wide))
        return list(self.network.model.requires_grad_(True).parameters())

    def read(self, prompt_ids: Sequence[int]) -> tuple[Prefix, torch.Tensor]:
        return self.network.read([self.network.embed(prompt_ids)])

    def kept(self) -> Weights:
        return Weights(self.network.model.requires_grad_(False))


PARAMETERISATIONS: Mapping[str, type[Learning]] = MappingProxyType(
    {"soft_prompt": LearningPrompt, "prefix": LearningPrefix, "lora": LearningLowRank, "full": LearningWeights}
)


def parameterisation_of(recipe: Recipe) -> type[Learning]:
    """Raises ``InputError`` for a name that is not known."""
    if recipe.parameterisation not in PARAMETERISATIONS:
        known = ", ".join(map(repr, PARAMETERISATIONS))
        raise InputError(f"recipe: parameterisation is {recipe.parameterisation!r}; this trainer knows {known}")
    return PARAMETERISATIONS[recipe.parameterisation]


def _states(prefix: Prefix) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if prefix.network.why_reread is not None:
        raise InputError("parameterisation 'prefix' needs keys and values in every layer: use 'soft_prompt'")
    return prefix.states()


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
