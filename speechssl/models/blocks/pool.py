"""From a sequence to one vector."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "mean_std"]


def pool(x: Tensor, pad: Tensor, kind: Pooling = "mean") -> Tensor:
    """Statistics over valid frames: x (B, T, D), pad (B, T) True = padding -> (B, D) or (B, 2 D).

    In at least float32. `mean_std` appends the unbiased standard deviation. Rows without a frame
    give zeros.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(pad[..., None], 0.0)
    count = (~pad).sum(1, keepdim=True)  # (B, 1)
    mean = x.sum(1) / count.clamp(min=1)
    if kind == "mean":
        return mean
    centred = (x - mean[:, None]).masked_fill(pad[..., None], 0.0)
    variance = centred.square().sum(1) / (count - 1).clamp(min=1)
    # The root has no gradient at 0, which one frame or a constant channel would hit.
    return torch.cat([mean, (variance + 1e-7).sqrt()], dim=1)
