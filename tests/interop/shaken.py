"""Models in which no parameter stands where it was born."""

from __future__ import annotations

import torch


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random: an affine that starts at one or zero hides a swapped name."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.05)
    return model.eval()
