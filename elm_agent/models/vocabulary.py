"""Which words of the vocabulary vectors are near to. Knows the input embeddings and the tokenizer, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from elm_agent.models.engine import LocalModel

_PIECE = 8192  # rows of the embedding matrix at a time: 32 MB of a 1,024 wide one in float32


@dataclass(frozen=True, slots=True)
class Near:
    """One token as text, and the cosine of its embedding to the vector."""

    token: str
    cosine: float


@torch.no_grad()
def nearest_tokens(model: LocalModel, rows_VE: torch.Tensor, k: int) -> list[list[Near]]:
    """For each row of ``rows_VE`` (V, E) the ``k`` tokens with the nearest input embeddings, best first."""
    weight_TE = model.network.embedding.weight
    rows_VE = torch.nn.functional.normalize(rows_VE.to(weight_TE.device, torch.float32), dim=-1)
    pieces_VT = [
        rows_VE @ torch.nn.functional.normalize(piece_TE.float(), dim=-1).T for piece_TE in weight_TE.split(_PIECE)
    ]
    best = torch.cat(pieces_VT, dim=1).topk(min(k, len(weight_TE)), dim=1)
    return [
        [Near(token_text(model, token), float(cosine)) for token, cosine in zip(ids, cosines, strict=True)]
        for ids, cosines in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def token_text(model: LocalModel, token: int) -> str:
    """A token as people read it; special ones have their names."""
    return str(model.tokenizer.decode([token], skip_special_tokens=False))
