"""A network's weights as their difference from another's, in few bytes: a student by its teacher.

What a short training changes is small and mostly of low rank (Hu et al. 2022 train it so).
Legend: a weight (K, ...) is a matrix of K rows; its difference is left (K, r) @ right (r, columns).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BYTES = 2  # of a number in bfloat16


def reduced(
    weights: Mapping[str, Tensor], base: Mapping[str, Tensor], limit: int
) -> dict[str, Tensor]:
    """Differences from `base` in at most `limit` bytes of bfloat16: NAME, or NAME.left and .right.

    Vectors are kept whole. The rest goes to the singular triplets, of all matrices together, that
    explain most of the squared difference for their bytes.
    Raises ValueError where the vectors alone are more.
    """
    parts, triplets = {}, []
    factors: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for name, value in weights.items():
        difference = value.float() - base[name].float()
        if value.ndim < 2:
            parts[name] = difference.bfloat16()
            continue
        u, s, v = torch.linalg.svd(difference.flatten(1), full_matrices=False)
        factors[name] = u, s, v
        cost = BYTES * (len(u) + v.shape[1])
        triplets += [(float(value) ** 2 / cost, cost, name) for value in s]
    left = limit - BYTES * sum(part.numel() for part in parts.values())
    if left < 0:
        raise ValueError(f"the vectors alone take {limit - left:,} bytes, more than {limit:,}")
    ranks = dict.fromkeys(factors, 0)
    for worth, cost, name in sorted(triplets, reverse=True):
        if worth == 0 or cost > left:
            break
        ranks[name] += 1
        left -= cost
    for name, rank in ranks.items():
        u, s, v = factors[name]
        if rank:
            parts[f"{name}.left"] = (u[:, :rank] * s[:rank]).bfloat16()
            parts[f"{name}.right"] = v[:rank].bfloat16().contiguous()
    return parts


def restored(parts: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights (float32) whose differences from `base` are `parts`; unknown names stay.

    Raises ValueError naming a difference whose shape does not go with its weight.
    """
    weights = {name: value.float().clone() for name, value in base.items()}
    for name, part in parts.items():
        whole, _, side = name.rpartition(".")
        if side == "left" and whole in base and f"{whole}.right" in parts:
            right, flat = parts[f"{whole}.right"], base[whole].flatten(1)
            if part.shape != (len(flat), *right.shape[:1]) or right.shape[1:] != flat.shape[1:]:
                raise ValueError(f"{whole}: differences of another shape")
            weights[whole] += (part.float() @ right.float()).view_as(weights[whole])
        elif side != "right" or f"{whole}.left" not in parts:
            if name in base and part.shape != base[name].shape:
                raise ValueError(f"{name}: differences of another shape")
            weights[name] = weights[name] + part.float() if name in base else part
    return weights
