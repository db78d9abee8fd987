"""Networks whose rows are read anew for every token, because what their layers keep between tokens is not known here.

Keys and values of attention can be shared by a group, cut for gradients and taken apart by rows; the states of
recurrent layers and convolutions cannot. Correct for any architecture, and slow.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_KNOWN = (DynamicLayer, DynamicSlidingWindowLayer)


def why_reread(model: PreTrainedModel) -> str | None:
    """Why rows are read anew, in one phrase; None where layers keep keys and values alone."""
    others = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers if type(layer) not in _KNOWN}
    if others:
        return f"its layers keep more than keys and values ({', '.join(sorted(others))}): rows are read anew"
    if model._is_stateful:
        return "it keeps a state of its own: rows are read anew"
    if model.config._attn_implementation == "eager" and model.dtype == torch.float64:
        # It takes the softmax in float32, where the mask of a pad is minus infinity everywhere and leaves NaN.
        return "its attention cannot have pads in float64: rows are read anew"
    return None
