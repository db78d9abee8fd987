"""One token for every row in flight by ONNX Runtime, which packs the weights once for the products of a few rows, and
what rows read before their first one.

Decoding on a CPU is reading weights, and torch's products of 1 to 32 rows are far from the memory's bandwidth; those
of ONNX Runtime's library are near it, and its graph leaves out what Python does between them. The mathematics are
``step``'s, the keys and values lie in the same slots and are written in place. Low-rank matrices beside the
projections are inputs of the graph, so they may change at every step. Knows the layers of the architectures it draws
a graph of; knows nothing of rows, text or memories. Figures: docs/LOG.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import nn
from transformers import PreTrainedModel

from elm_agent.models.lowrank import Joint
from elm_agent.models.memory import give_back, spare_bytes
from elm_agent.models.slots import Slots
from elm_agent.models.step import why_unknown, window_of

logger = logging.getLogger(__name__)

_KNOWN = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_HEAD_MULTIPLE = 16  # of grouped query attention with a rotation
_MICROSOFT = "com.microsoft"
_OPSETS = (("", 18), (_MICROSOFT, 1))
_IR_VERSION = 10
_SEEN = "seen"
_SCORES = 2**21  # of a head, in a pass that reads a row
_TOGETHER = 256  # positions of rows that are read as one: each is compared with all
_TYPES = {torch.float32: np.float32, torch.int32: np.int32, torch.int64: np.int64, torch.bool: np.bool_}


def why_unpacked(model: PreTrainedModel) -> str | None:
    """Why this network's steps are torch's, in one phrase; None where its weights can be packed."""
    config, weight = model.config, model.get_input_embeddings().weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return f"packed weights are for float32 on a CPU, and it is {weight.dtype} on {weight.device}"
    if (why := why_unknown(model)) is not None:
        return why
    if config.model_type not in _KNOWN:
        return f"packed weights are for {', '.join(sorted(_KNOWN))}, and it is {config.model_type!r}"
    if any(window_of(model, layer) is not None for layer in model.model.layers):
        return "it has layers with a window"
    if (width := int(model.model.layers[0].self_attn.head_dim)) % _HEAD_MULTIPLE:
        return f"its heads are {width} wide, which is no multiple of {_HEAD_MULTIPLE}"
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act!r}"
    wanted, spare = packed_bytes(model), spare_bytes(weight.device)
    if spare is not None and wanted > spare // 2:
        return (
            f"packed weights take {wanted // 2**20} MiB beside the model, and {spare // 2**20} MiB are free, of "
            "which half is kept for rows in flight"
        )
    return None


def packed_bytes(model: PreTrainedModel) -> int:
    """Bytes that packed weights take beside the model."""
    return sum(module.weight.nbytes for module in model.modules() if isinstance(module, nn.Linear))


def packed_step(model: PreTrainedModel, *, beside: bool = False) -> PackedStep | None:
    """A packed step, or None where there is none, which is logged with the reason."""
    if (why := why_unpacked(model)) is not None:
        logger.info("decoding with weights as they are: %s", why)
        return None
    return PackedStep(model, beside=beside)


class PackedStep:
    """``step`` for one token of every row, of a network for which ``why_unpacked`` is None.

    The weights are copied: it does not follow a network that is trained. ``beside``: for rows of which some have
    adapters.
    """

    def __init__(self, model: PreTrainedModel, *, beside: bool = False) -> None:
        self._embedding = model.get_input_embeddings()
        self._layers = len(model.model.layers)
        attention = model.model.layers[0].self_attn
        self._key_heads, self._width = attention.k_proj.out_features // attention.head_dim, int(attention.head_dim)
        self._room = min(_TOGETHER, model.config.max_position_embeddings)
        graph = _Graph(beside=beside)
        network = _draw(graph, model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.force_spinning_stop", "1")  # between steps the cores are torch's
        options.add_external_initializers(
            list(graph.weights), [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in graph.weights.values()]
        )
        self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        give_back()  # packing leaves up to half of the weights' size behind
        self._binding: Any = None
        self._bound: tuple[int, ...] = ()

    @torch.no_grad()
    def __call__(self, slots: Slots, tokens_B: torch.Tensor, joint: Joint | None = None) -> torch.Tensor:
        """Append a token to every row of ``slots``. Returns logits (B, vocabulary), float32.

        ``joint``: with ``beside``, and only then, the rows' adapters.
        """
        slots.grow()
        self._bind(slots, {} if joint is None else joint.matrices)
        lengths_B = slots.lengths_B + 1
        logits_BV = self._run(
            self._binding,
            self._embedding(tokens_B)[:, None],
            places_BT=slots.lengths_B[:, None],
            lengths_B=lengths_B,
            wanted_W=torch.arange(len(tokens_B)),
            more={} if joint is None else {_SEEN: joint.seen_BR},
        )
        slots.lengths_B = lengths_B
        return logits_BV

    @torch.no_grad()
    def read(
        self, rows: Sequence[torch.Tensor], begun: Sequence[torch.Tensor | None]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Read rows of embeddings, each (T, E), after what each has ``begun`` with; none has adapters.

        Keys and values of a row are one tensor (S, H, positions, D): of each layer its keys and then its values.
        Returns those of each row and the logits (B, vocabulary) after its last position, all float32.
        """
        nothing = rows[0].new_empty(2 * self._layers, self._key_heads, 0, self._width)
        pasts = [nothing if known is None else known for known in begun]
        states, logits = list[torch.Tensor](), list[torch.Tensor]()
        for part in self._parts([past.shape[2] + len(row) for past, row in zip(pasts, rows, strict=True)]):
            read, logits_BV = self._together(rows[part], pasts[part])
            states += read
            logits.append(logits_BV)
        return states, torch.cat(logits)

    def _parts(self, lengths: Sequence[int]) -> list[slice]:
        """The rows that are read together, one after the other."""
        parts, first, positions = list[slice](), 0, 1
        for row, length in enumerate(lengths):
            if row > first and positions + length > self._room:
                parts.append(slice(first, row))
                first, positions = row, 1
            positions += length
        return [*parts, slice(first, len(lengths))]

    def _together(
        self, rows: Sequence[torch.Tensor], pasts: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        if len(rows) > 1:
            states, logits_BV = self._read(rows, pasts)
            if bool(logits_BV.isfinite().all()):  # else NaN of a row may have reached those beside it
                return states, logits_BV
        alone = [self._alone(row, past) for row, past in zip(rows, pasts, strict=True)]
        return [states for states, _ in alone], torch.cat([logits_1V for _, logits_1V in alone])

    def _alone(self, row_TE: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In pieces if it is long: ONNX Runtime holds all scores of a pass at once."""
        for piece_TE in torch.split(row_TE, max(1, _SCORES // (past.shape[2] + len(row_TE)))):
            [past], logits_1V = self._read([piece_TE], [past])
        return past, logits_1V

    def _read(
        self, rows: Sequence[torch.Tensor], pasts: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Rows laid one after the other as if they were one, of which each position sees its own row alone."""
        new, known = [len(row) for row in rows], [past.shape[2] for past in pasts]
        # The places of a first prompt would be counted on from row to row, so there is something before it.
        unseen = int(len(rows) > 1)
        before = unseen + sum(known)
        states_S1HLD = rows[0].new_zeros(len(pasts[0]), 1, self._key_heads, before + sum(new), self._width)
        mine_L = [-1] * unseen + [row for row, count in enumerate(known) for _ in range(count)]
        states_S1HLD[:, 0, :, unseen:before] = torch.cat(list(pasts), dim=2)
        of_N = torch.tensor([row for row, count in enumerate(new) for _ in range(count)])
        of_L = torch.cat([torch.tensor(mine_L, dtype=torch.long), of_N])
        binding = self._session.io_binding()
        self._bind_states(binding, list(states_S1HLD))
        logits_BV = self._run(
            binding,
            torch.cat(list(rows))[None],
            places_BT=torch.cat([torch.arange(p, p + t) for p, t in zip(known, new, strict=True)])[None],
            lengths_B=torch.tensor([before + sum(new)]),
            wanted_W=torch.tensor(new).cumsum(0) - 1,
            seen_TL=of_N[:, None] == of_L,
        )
        pieces = torch.split(states_S1HLD[:, 0, :, before:], new, dim=2)
        return [torch.cat(both, dim=2) for both in zip(pasts, pieces, strict=True)], logits_BV

    def _run(
        self,
        binding: Any,
        embeds_BTE: torch.Tensor,
        *,
        places_BT: torch.Tensor,
        lengths_B: torch.Tensor,
        wanted_W: torch.Tensor,
        seen_TL: torch.Tensor | None = None,
        more: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> torch.Tensor:
        """The logits (W, vocabulary) after the wanted of the new positions.

        ``lengths_B``: positions of each row, the new ones among them. ``seen_TL``: bool, which of those before it a
        new position sees; None: all.
        """
        rows, new, _ = embeds_BTE.shape
        length = int(lengths_B.max())
        bias_TL = embeds_BTE.new_zeros(new, length)
        if seen_TL is not None:
            bias_TL.masked_fill_(~seen_TL, torch.finfo(bias_TL.dtype).min)
        inputs = {
            "embeds": embeds_BTE.flatten(0, 1).contiguous(),
            "form": torch.tensor([rows, new, -1]),
            "wanted": wanted_W,
            "lengths": lengths_B.int() - 1,
            "length": torch.tensor([length], dtype=torch.int32),
            "places": places_BT.contiguous(),
            "bias": bias_TL[None, None],
            **more,
        }
        for name, tensor in inputs.items():
            self._bind_input(binding, name, tensor)
        logits_WV = embeds_BTE.new_empty(len(wanted_W), self._embedding.num_embeddings)
        binding.bind_output("logits", "cpu", 0, np.float32, tuple(logits_WV.shape), logits_WV.data_ptr())
        self._session.run_with_iobinding(binding)
        return logits_WV

    def _bind(self, slots: Slots, matrices: Mapping[str, torch.Tensor]) -> None:
        """Let the graph read and write slots, and read matrices, where they are, if they are not where they were."""
        states = [tensor for pair in zip(slots.keys, slots.values, strict=True) for tensor in pair]
        shapes = [*slots.keys[0].shape, *(size for stacked in matrices.values() for size in stacked.shape)]
        where = (slots.rows, *shapes, *(tensor.data_ptr() for tensor in (*states, *matrices.values())))
        if where == self._bound:
            return
        self._binding, self._bound = self._session.io_binding(), where
        self._bind_states(self._binding, [tensor[: slots.rows] for tensor in states])
        for name, stacked in matrices.items():
            for layer, matrix in enumerate(stacked.unbind()):
                self._bind_input(self._binding, f"{layer}.{name}", matrix)

    def _bind_states(self, binding: Any, states: Sequence[torch.Tensor]) -> None:
        """Let it read and write keys and values of each layer where they are."""
        names = [f"{index}.{kind}" for index in range(self._layers) for kind in ("keys", "values")]
        for name, tensor in zip(names, states, strict=True):
            self._bind_input(binding, name, tensor)
            binding.bind_output(f"{name}.after", "cpu", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())

    @staticmethod
    def _bind_input(binding: Any, name: str, tensor: torch.Tensor) -> None:
        binding.bind_input(name, "cpu", 0, _TYPES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())


class _Graph:
    """Nodes, inputs and outputs of an ONNX graph, and the weights it shares with torch.

    ``beside``: the low-rank matrices beside each projection are inputs: "<layer>.<path>.A" (R, in), "….B" (out, R),
    and which of the R each row sees.
    """

    def __init__(self, *, beside: bool) -> None:
        self._beside = beside
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[TensorProto] = []
        self.weights: dict[str, np.ndarray] = {}
        if beside:
            self.input(_SEEN, ["B", "R"], TensorProto.BOOL)
            self.initializers.append(helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]))

    def node(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **how: Any) -> str:
        """Returns the name of the last output."""
        self.nodes.append(helper.make_node(operator, list(inputs), list(outputs), domain=domain, **how))
        return outputs[-1]

    def input(self, name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def weight(self, name: str, tensor: torch.Tensor) -> str:
        """A constant that lies in torch's memory until it is packed."""
        self.weights[name] = tensor.detach().contiguous().numpy()
        elsewhere = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=tensor.shape)
        elsewhere.data_location = TensorProto.EXTERNAL
        elsewhere.external_data.add(key="location", value="torch")
        self.initializers.append(elsewhere)
        return name

    def linear(self, name: str, module: nn.Linear, rows: str) -> str:
        """(B, in) to (B, out)."""
        inputs = [rows, self.weight(f"{name}.weight", module.weight)]
        if module.bias is not None:
            inputs.append(self.weight(f"{name}.bias", module.bias))
        return self.node("Gemm", inputs, [name], transB=1)

    def projection(self, name: str, module: nn.Linear, rows: str) -> str:
        """``linear``, and what is beside it."""
        product = self.linear(name, module, rows)
        if not self._beside:
            return product
        down = self.input(f"{name}.A", ["R", module.in_features])
        up = self.input(f"{name}.B", [module.out_features, "R"])
        low = self.node("Gemm", [rows, down], [f"{name}.low"], transB=1)
        seen = self.node("Where", [_SEEN, low, "nothing"], [f"{name}.seen"])  # not times 0: inf would be NaN
        return self.node("Gemm", [seen, up, product], [f"{name}.both"], transB=1)

    def norm(self, name: str, module: Any, states: str) -> str:
        """Root mean square norm over the last axis."""
        inputs = [states, self.weight(f"{name}.weight", module.weight)]
        return self.node("SimplifiedLayerNormalization", inputs, [name], axis=-1, epsilon=_epsilon(module))

    def add_and_norm(self, name: str, module: Any, left: str, right: str) -> tuple[str, str]:
        """The norm of a sum, and the sum."""
        inputs = [left, right, self.weight(f"{name}.weight", module.weight)]
        outputs = [name, "", "", f"{name}.sum"]
        total = self.node("SkipSimplifiedLayerNormalization", inputs, outputs, _MICROSOFT, epsilon=_epsilon(module))
        return name, total

    def norm_of_heads(self, name: str, module: Any, rows: str, heads: int, width: int) -> str:
        """(B, heads * width), each head by itself."""
        apart = self.node("Reshape", [rows, self.integers(f"{name}.apart", [-1, heads, width])], [f"{name}.heads"])
        normed = self.norm(f"{name}.normed", module, apart)
        return self.node("Reshape", [normed, self.integers(f"{name}.together", [-1, heads * width])], [name])

    def integers(self, name: str, values: Sequence[int]) -> str:
        self.initializers.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    def serialized(self) -> bytes:
        graph = helper.make_graph(self.nodes, "step", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid(*opset) for opset in _OPSETS]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        return bytes(model.SerializeToString())


def _draw(graph: _Graph, model: PreTrainedModel) -> bytes:
    """The whole step: embeddings (N, E) of B rows, to logits of the ``wanted`` among them.

    "form": B, how many of each (T), -1. "lengths": (B,), positions of each row but the last; "length": of the longest
    with its last (L). "places": positions (B, T) of the new ones. "bias": (1, 1, T, L), added to all scores.
    """
    inner, config = model.model, model.config
    hidden = graph.input("embeds", ["N", config.hidden_size])
    graph.input("form", [3], TensorProto.INT64)
    graph.input("wanted", ["W"], TensorProto.INT64)
    graph.input("lengths", ["B"], TensorProto.INT32)
    graph.input("length", [1], TensorProto.INT32)
    graph.input("places", ["B", "T"], TensorProto.INT64)
    graph.input("bias", [1, 1, "T", "L"])
    positions_1L = torch.arange(config.max_position_embeddings)[None]
    cos_1LD, sin_1LD = inner.rotary_emb(inner.embed_tokens.weight, positions_1L)
    half = cos_1LD.shape[-1] // 2
    for name, states_1LD in (("cos", cos_1LD), ("sin", sin_1LD)):
        graph.weight(name, states_1LD[0, :, :half])
    layers = list(inner.layers)
    normed = graph.norm("0.before", layers[0].input_layernorm, hidden)
    for index, layer in enumerate(layers):
        mixed = _attention(graph, f"{index}", layer.self_attn, normed)
        normed, hidden = graph.add_and_norm(f"{index}.between", layer.post_attention_layernorm, hidden, mixed)
        after = layers[index + 1].input_layernorm if index + 1 < len(layers) else inner.norm
        normed, hidden = graph.add_and_norm(
            f"{index}.after", after, hidden, _mlp(graph, f"{index}", layer.mlp, normed)
        )
    normed = graph.node("Gather", [normed, "wanted"], ["last"])
    head = graph.linear("logits", model.lm_head, normed)
    graph.output(head, ["W", config.vocab_size])
    return graph.serialized()


def _attention(graph: _Graph, name: str, attention: Any, normed: str) -> str:
    width = int(attention.head_dim)
    heads, key_heads = attention.q_proj.out_features // width, attention.k_proj.out_features // width
    states = {
        kind: graph.projection(f"{name}.self_attn.{kind}_proj", getattr(attention, f"{kind}_proj"), normed)
        for kind in "qkv"
    }
    for kind, count in (("q", heads), ("k", key_heads)):
        if hasattr(attention, f"{kind}_norm"):
            module = getattr(attention, f"{kind}_norm")
            states[kind] = graph.norm_of_heads(f"{name}.{kind}.norm", module, states[kind], count, width)
    rows = [graph.node("Reshape", [state, "form"], [f"{state}.row"]) for state in states.values()]
    kept = [graph.input(f"{name}.{kind}", ["B", key_heads, "room", width]) for kind in ("keys", "values")]
    after = [graph.output(f"{state}.after", ["B", key_heads, "room", width]) for state in kept]
    graph.node(
        "GroupQueryAttention",
        [*rows, *kept, "lengths", "length", "cos", "sin", "places", "bias"],
        [f"{name}.mixed.row", *after],
        _MICROSOFT,
        num_heads=heads,
        kv_num_heads=key_heads,
        scale=float(attention.scaling),
        do_rotary=1,
    )
    together = graph.integers(f"{name}.together", [-1, heads * width])
    mixed = graph.node("Reshape", [f"{name}.mixed.row", together], [f"{name}.mixed"])
    return graph.projection(f"{name}.self_attn.o_proj", attention.o_proj, mixed)


def _mlp(graph: _Graph, name: str, mlp: Any, normed: str) -> str:
    gate = graph.projection(f"{name}.mlp.gate_proj", mlp.gate_proj, normed)
    gate = graph.node("QuickGelu", [gate], [f"{name}.silu"], _MICROSOFT, alpha=1.0)
    up = graph.projection(f"{name}.mlp.up_proj", mlp.up_proj, normed)
    gated = graph.node("Mul", [gate, up], [f"{name}.gated"])
    return graph.projection(f"{name}.mlp.down_proj", mlp.down_proj, gated)


def _epsilon(module: Any) -> float:
    return float(module.variance_epsilon)
