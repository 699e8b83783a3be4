"""What tests of several objectives need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the library's deliberate `.float()` keep float64, to compare to 1e-6."""
    to_float = torch.Tensor.float

    def keep(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else to_float(x)

    monkeypatch.setattr(torch.Tensor, "float", keep)
