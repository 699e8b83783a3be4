"""The penalty on what the feature encoder puts out (arXiv 2006.11477, sec. 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from speechssl.types import Frames


def mean_square(z: Frames) -> Tensor:
    """Mean of squares of z (B, T, C) over the valid frames of each row -> (B,) float32.

    Times the targets of each row it adds up over any split of a batch, as losses here do.
    """
    valid = torch.arange(z.x.shape[1], device=z.x.device)[None, :] < z.lens[:, None]
    squares = z.x.float().square().mean(-1).masked_fill(~valid, 0.0)
    return squares.sum(1) / z.lens.clamp(min=1)
