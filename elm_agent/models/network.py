"""The frozen network as four tensor operations: embed, read a prefix, extend it, share it among a group.

Knows transformers' model and cache classes; knows nothing of text, questions, memories or training.
A row is always [pads][soft prompt][text]: pads come first, positions count from the first real token.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from elm_agent.models.head import head_logprobs, token_logprobs
from elm_agent.models.lowrank import Adapter, Joint, beside, projections
from elm_agent.models.memory import kept_bytes
from elm_agent.models.prefix_cache import PrefixCache
from elm_agent.models.rereading import why_reread
from elm_agent.models.slots import Slots
from elm_agent.models.sparing import recomputed
from elm_agent.models.step import why_unknown, window_of
from elm_agent.models.tree import Tree, tree_of

if TYPE_CHECKING:
    from elm_agent.models.packed import PackedStep


@dataclass(slots=True)
class Prefix:
    """Keys and values of B rows of L positions, and which network has read them.

    ``mask_BL``: bool, False at pads. ``adapters_B``: what is beside the network for each row, also for what follows.
    Of a network with ``why_reread`` the cache has one layer, whose keys (B, 1, L, E) are the embeddings it has read.
    """

    network: Network
    cache: DynamicCache
    mask_BL: torch.Tensor
    adapters_B: tuple[Adapter | None, ...]

    def shared(self, rows: int, *, detach: bool = False) -> Prefix:
        """This one row seen by ``rows`` rows, without copying; gradients flow back unless detached."""
        cache = copy.copy(self.cache)
        cache.layers = [_expanded(layer, rows, detach) for layer in self.cache.layers]
        (adapter,) = self.adapters_B
        if detach and adapter is not None:
            adapter = adapter.detached(self.network.dtype)
        return Prefix(self.network, cache, self.mask_BL.expand(rows, -1), (adapter,) * rows)

    def cut(self, positions: int) -> Prefix:
        """The same without its last so many positions, not copied. Of a network whose ``why_slow`` is None."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :-positions], layer.values[:, :, :-positions]
        return Prefix(self.network, cache, self.mask_BL[:, :-positions], self.adapters_B)

    def states(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of each layer: (B, key heads, L, head width)."""
        return [(layer.keys, layer.values) for layer in self.cache.layers]

    def leaf(self) -> tuple[Prefix, list[tuple[torch.Tensor, torch.Tensor]]]:
        """The same values as leaves, for gradients to gather on, and (what was cut, its leaf) of each."""
        cache = copy.copy(self.cache)
        cache.layers, pairs = [], []
        for layer in self.cache.layers:
            cut = copy.copy(layer)
            for name in ("keys", "values"):
                states = getattr(layer, name)
                if states.requires_grad:
                    pairs.append((states, states.detach().requires_grad_(True)))
                    setattr(cut, name, pairs[-1][1])
            cache.layers.append(cut)
        return Prefix(self.network, cache, self.mask_BL, self.adapters_B), pairs

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows (int64 indices), in place."""
        self.cache.batch_select_indices(rows)
        self.mask_BL = self.mask_BL[rows]
        self.adapters_B = tuple(self.adapters_B[row] for row in rows.tolist())


class Network:
    """A causal language model in eval mode without trainable parameters.

    ``why_slow``: why its architecture is decoded by transformers alone; None where the quick way is known.
    ``why_reread``: why a row is read anew for every token; None where what it has read can be kept.
    ``exact``: False for one that only comes near another, so that what it draws has to be corrected for.
    ``pack``: decode with weights that are packed once, where that is quicker. Not for one that is trained.
    ``graphs``: decode by CUDA graphs, on a GPU.
    ``prefix_cache_bytes``: what packed weights have read is kept for rows that begin alike, up to so many bytes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        exact: bool = True,
        pack: bool = False,
        graphs: bool = False,
        prefix_cache_bytes: int = 2**28,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.exact = exact
        self._pack = pack
        self._graphs = graphs
        self._sparing = False
        self._prefix_cache = PrefixCache(prefix_cache_bytes)
        self.embedding = model.get_input_embeddings()
        self.device: torch.device = self.embedding.weight.device
        self.dtype: torch.dtype = self.embedding.weight.dtype
        self.why_slow = why_unknown(model)
        self.why_reread = None if self.why_slow is None else why_reread(model)

    @property
    def trains_head(self) -> bool:
        """Whether the head's own weights want a gradient."""
        return bool(self.model.get_output_embeddings().weight.requires_grad)

    @cached_property
    def quick_step(self) -> Callable[[Slots, torch.Tensor], torch.Tensor] | None:
        """A quicker ``step`` for one token of every row; made when first asked for, None where there is none.

        To be held. Its parts are imported here: who decodes in another way does not wait for them.
        """
        if self._graphs and self.device.type == "cuda" and self.why_slow is None:
            from elm_agent.models.recorded import RecordedStep

            return RecordedStep(self.model)
        return self._packed

    @cached_property
    def _packed(self) -> PackedStep | None:
        return self._packed_step()

    @cached_property
    def quick_step_beside(self) -> Callable[[Slots, torch.Tensor, Joint], torch.Tensor] | None:
        """The same for rows of which some have adapters."""
        return self._packed_step(beside=True)

    def _packed_step(self, *, beside: bool = False) -> PackedStep | None:
        if not (self._pack and self.device.type == "cpu"):
            return None
        from elm_agent.models.packed import packed_step

        return packed_step(self.model, beside=beside)

    @property
    def width(self) -> int:
        """E."""
        return int(self.embedding.weight.shape[1])

    @cached_property
    def states_form(self) -> list[tuple[int, int, int]]:
        """(key heads, width of a key, width of a value) of each layer; a pass of one token tells. To be held."""
        with torch.no_grad():
            states = self.read([self.embed([0])])[0].states()
        return [(keys.shape[1], keys.shape[3], values.shape[3]) for keys, values in states]

    @cached_property
    def gradient_bytes(self) -> tuple[int, int]:
        """Bytes that ``logprobs`` keeps for its gradient in each row: of a completion's position, and of one of the
        prompt. Three small passes tell. To be held."""
        few, more = 1, 17
        least, longer, later = (self._kept(*sizes) for sizes in ((few, few), (few, more), (more, few)))
        return (longer - least) // (more - few), max(0, later - least) // (more - few)

    def _kept(self, prompt: int, completion: int) -> int:
        with torch.enable_grad():
            embeds_TE = self.embed([0] * prompt).detach().requires_grad_(True)
            shared, _ = self.read([embeds_TE])[0].leaf()
            tokens_1T = torch.zeros(1, completion, dtype=torch.long, device=self.device)
            mask_1T = torch.ones_like(tokens_1T, dtype=torch.bool)
            run = partial(self.logprobs, shared, 0, tokens_1T, mask_1T, 1.0)
            return kept_bytes(run, self.model.parameters())

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Input embeddings of token ids: (T, E), model dtype."""
        embeds_TE: torch.Tensor = self.embedding(torch.tensor(list(ids), dtype=torch.long, device=self.device))
        return embeds_TE

    def begin(
        self,
        states: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
        adapters_B: Sequence[Adapter | None] = (None,),
    ) -> Prefix:
        """What ``read`` goes on from: for B rows nothing, or given keys and values (B, H, V, D) of every layer."""
        # Layers with a window forget what lies outside; those that are known are decoded with all positions kept.
        plain = self.why_slow is None or self.why_reread is not None
        cache = DynamicCache() if plain else DynamicCache(config=self.model.config)
        for layer, (keys, values) in enumerate(states):
            cache.update(keys, values, layer)
        positions = states[0][0].shape[2] if states else 0
        mask_BL = torch.ones(len(adapters_B), positions, dtype=torch.bool, device=self.device)
        return Prefix(self, cache, mask_BL, tuple(adapters_B))

    def read(self, rows: Sequence[torch.Tensor], after: Prefix | None = None) -> tuple[Prefix, torch.Tensor]:
        """Run rows of embeddings, each (T_i, E), from an empty cache, or ``after`` what its rows hold (it grows).

        Returns the prefix and the logits (B, vocabulary), float32 or wider, after each row's last position.
        """
        embeds_BLE, mask_BL = left_pad(rows)
        prefix = self.begin(adapters_B=(None,) * len(rows)) if after is None else after
        if self.why_reread is not None:
            return prefix, wide(self._reread(prefix, mask_BL, embeds_BLE, last=1)[:, -1])
        out = self._run(self.model, prefix, mask_BL, inputs_embeds=embeds_BLE, logits_to_keep=1)
        return prefix, wide(out.logits[:, -1])

    @torch.no_grad()
    def read_to_draw(self, rows: Sequence[torch.Tensor]) -> tuple[Prefix, torch.Tensor]:
        """``read`` for rows that are drawn next: with packed weights, if it is they that draw, and from where a known
        beginning ends."""
        if (packed := self._packed) is None:
            return self.read(rows)
        begun = [self._prefix_cache.find(row) for row in rows]
        known = [0 if states is None else states.shape[2] for states in begun]
        states, logits_BV = packed.read([row[count:] for row, count in zip(rows, known, strict=True)], begun)
        for row, count, states_SHTD in zip(rows, known, states, strict=True):
            if count < len(row) / 2:
                self._prefix_cache.keep(row, states_SHTD)
        states_BTSHD, mask_BL = left_pad([states_SHTD.movedim(2, 0) for states_SHTD in states])
        states_S = states_BTSHD.permute(2, 0, 3, 1, 4).unbind()
        prefix = self.begin(list(zip(states_S[::2], states_S[1::2], strict=True)), (None,) * len(rows))
        prefix.mask_BL = mask_BL
        return prefix, logits_BV

    def extend(self, prefix: Prefix, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Append T tokens to every row; the prefix grows in place.

        Returns logits (B, T, vocabulary), float32 or wider.
        """
        everything = torch.ones_like(tokens_BT, dtype=torch.bool)
        if self.why_reread is not None:
            return wide(self._reread(prefix, everything, self.embedding(tokens_BT), last=tokens_BT.shape[1]))
        return wide(self._run(self.model, prefix, everything, input_ids=tokens_BT).logits)

    def logprobs(
        self, prefix: Prefix, last_id: int, tokens_BT: torch.Tensor, mask_BT: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Log-probabilities (B, T) in nats of right-padded completions after one row and its last token; 0 at pads.

        ``prefix``: the one row without ``last_id``; unchanged. At logits / temperature, at least float32.
        """
        if self.reads_trees(prefix, tokens_BT.shape[1]):
            rows = [tokens_T[mask_T].tolist() for tokens_T, mask_T in zip(tokens_BT, mask_BT, strict=True)]
            tree, seen = tree_of(rows, last_id, self.device), prefix.shared(1)
            with self._recomputed(seen):
                chosen_N = self._of_tree(seen, tree, temperature)
        else:
            last_B1 = torch.full((tokens_BT.shape[0], 1), last_id, device=self.device)
            inputs_BT, seen = torch.cat([last_B1, tokens_BT[:, :-1]], dim=1), prefix.shared(len(tokens_BT))
            with self._recomputed(seen):
                chosen_N = self._of_rows(seen, inputs_BT, tokens_BT, mask_BT, temperature)
        return chosen_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, chosen_N)

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """``logprobs`` in here take less memory for their gradient and more time; only where ``why_slow`` is None."""
        self._sparing = True
        try:
            yield
        finally:
            self._sparing = False

    def _recomputed(self, prefix: Prefix) -> AbstractContextManager[None]:
        if not (self._sparing and torch.is_grad_enabled()):
            return nullcontext()
        return recomputed(self.model.model.layers, prefix.cache, partial(self.beside, prefix.adapters_B))

    def reads_trees(self, prefix: Prefix, positions: int) -> bool:
        """Whether completions of so many positions are read as a tree: where every layer sees all of a row."""
        return self._quick_head and prefix.mask_BL.shape[1] + positions <= self._seen_by_all

    @property
    def _quick_head(self) -> bool:
        return self.why_slow is None and not self.trains_head

    @cached_property
    def _seen_by_all(self) -> float:
        """How many positions every layer sees."""
        windows = [window_of(self.model, layer) for layer in self.model.model.layers]
        return min((window for window in windows if window is not None), default=math.inf)

    def _of_tree(self, prefix: Prefix, tree: Tree, temperature: float) -> torch.Tensor:
        """Of each token of each row, one row after the other; ``prefix`` (one row without pads) is consumed."""
        before = prefix.mask_BL.shape[1]
        seen_NL = torch.nn.functional.pad(tree.seen_NN, (before, 0), value=True)
        mask_NL = torch.zeros(seen_NL.shape, dtype=self.dtype, device=self.device)
        with self.beside(prefix.adapters_B):
            out = self.model.model(
                input_ids=tree.inputs_N[None],
                attention_mask=mask_NL.masked_fill_(~seen_NL, torch.finfo(self.dtype).min)[None, None],
                position_ids=(before + tree.depths_N)[None],
                past_key_values=prefix.cache,
                use_cache=True,
            )
        hidden_PE = out.last_hidden_state[0, tree.after_P]
        chosen_P = head_logprobs(hidden_PE, self.model.lm_head.weight, tree.tokens_P, temperature)
        return chosen_P[tree.places_R]

    def _of_rows(
        self,
        prefix: Prefix,
        inputs_BT: torch.Tensor,
        tokens_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        """Of each real token, one row after the other; ``prefix`` (B rows) is consumed."""
        if not self._quick_head:
            return token_logprobs(self.extend(prefix, inputs_BT)[mask_BT], tokens_BT[mask_BT], temperature)
        everything = torch.ones_like(inputs_BT, dtype=torch.bool)
        hidden_BTE = self._run(self.model.model, prefix, everything, input_ids=inputs_BT).last_hidden_state
        return head_logprobs(hidden_BTE[mask_BT], self.model.lm_head.weight, tokens_BT[mask_BT], temperature)

    def _reread(self, prefix: Prefix, mask_BT: torch.Tensor, embeds_BTE: torch.Tensor, *, last: int) -> torch.Tensor:
        """Append positions to every row and read it from its beginning: the logits after the ``last`` of them.

        Rows with pads are read one by one: layers may take a pad for text.
        """
        new_B1TE = embeds_BTE[:, None]
        embeds_B1LE, _ = prefix.cache.update(new_B1TE, new_B1TE.new_empty(*new_B1TE.shape[:3], 0), 0)
        prefix.mask_BL = torch.cat([prefix.mask_BL, mask_BT], dim=1)
        parts = [(embeds_B1LE[:, 0], prefix.adapters_B)]
        if not bool(prefix.mask_BL.all()):
            rows = zip(embeds_B1LE, prefix.mask_BL, prefix.adapters_B, strict=True)
            parts = [(embeds_1LE[:, mask_L], (adapter,)) for embeds_1LE, mask_L, adapter in rows]
        logits = []
        for embeds_BLE, adapters_B in parts:
            with self.beside(adapters_B):
                out = self.model(inputs_embeds=embeds_BLE, use_cache=False, logits_to_keep=last)
            logits.append(out.logits)
        return torch.cat(logits)

    def _run(self, module: Any, prefix: Prefix, mask_BT: torch.Tensor, **inputs: Any) -> Any:
        """Run ``module`` on T more positions of every row, of which ``mask_BT`` are real."""
        mask_BL = torch.cat([prefix.mask_BL, mask_BT], dim=1)
        with self.beside(prefix.adapters_B):
            out = module(
                attention_mask=_mask_or_none(mask_BL),
                position_ids=positions_of(mask_BL)[:, -mask_BT.shape[1] :],
                past_key_values=prefix.cache,
                use_cache=True,
                **inputs,
            )
        prefix.mask_BL = mask_BL
        return out

    def beside(self, adapters_B: Sequence[Adapter | None]) -> AbstractContextManager[None]:
        """Passes in here have the adapter of each row of the batch beside the network's projections."""
        if not any(adapters_B):
            return nullcontext()
        return beside(self.projections, adapters_B)

    @cached_property
    def projections(self) -> dict[str, list[torch.nn.Module]]:
        """See ``lowrank.projections``."""
        return projections(self.model)


def left_pad(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack rows (T_i, E) to (B, L, E) with zeros on the left, and the bool mask (B, L) of what is real."""
    embeds_BLE = pad_sequence(list(rows), batch_first=True, padding_side="left")
    lengths_B = torch.tensor([len(row) for row in rows], device=embeds_BLE.device)
    from_right_L = torch.arange(embeds_BLE.shape[1] - 1, -1, -1, device=embeds_BLE.device)
    return embeds_BLE, from_right_L[None, :] < lengths_B[:, None]


def positions_of(mask_BL: torch.Tensor) -> torch.Tensor:
    """Positions (B, L): 0 at the first real token of each row; pads get 0 too and are masked anyway."""
    return (mask_BL.long().cumsum(dim=1) - 1).clamp(min=0)


def _mask_or_none(mask_BL: torch.Tensor) -> torch.Tensor | None:
    # Without pads no mask is needed, which lets attention take its fast path.
    return None if bool(mask_BL.all()) else mask_BL


def wide(logits: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _expanded(layer: object, rows: int, detach: bool) -> object:
    shared = copy.copy(layer)
    for name in ("keys", "values"):
        states = getattr(layer, name)
        states = states.detach() if detach else states
        setattr(shared, name, states.expand(rows, *states.shape[1:]))
    return shared
