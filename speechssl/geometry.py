"""Samples to frames and back, exactly: floor arithmetic of unpadded strided convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Count = TypeVar("Count", int, np.ndarray, Tensor)


@dataclass(frozen=True, slots=True)
class FrameGeometry:
    """Frame clock of a stack of convolutions without padding, at `rate_hz` samples a second."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    rate_hz: int = 16000

    def __post_init__(self) -> None:
        if len(self.kernels) != len(self.strides) or not self.kernels:
            raise ValueError(
                f"got {len(self.kernels)} kernels and {len(self.strides)} strides, "
                "expected equally many"
            )

    @property
    def hop(self) -> int:
        """Samples between neighbouring frames."""
        hop = 1
        for stride in self.strides:
            hop *= stride
        return hop

    @property
    def receptive(self) -> int:
        """Samples one frame sees: frame i sees [i * hop, i * hop + receptive)."""
        receptive = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            receptive = (receptive - 1) * stride + kernel
        return receptive

    @property
    def apart(self) -> int:
        """Fewest frames from one to the next that shares no sample with it."""
        return -(-self.receptive // self.hop)

    def frames(self, samples: Count) -> Count:
        """Number of frames of `samples` samples (int, array or tensor); 0 where too short."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
            samples = max(samples, 0) if isinstance(samples, int) else samples.clip(0)
        return samples

    def layer_frames(self, samples: Count, layer: int) -> Count:
        """Number of frames after convolution `layer` (0 = the first)."""
        return FrameGeometry(self.kernels[: layer + 1], self.strides[: layer + 1]).frames(samples)

    def samples(self, frames: int) -> int:
        """The fewest samples that give `frames` frames."""
        return (frames - 1) * self.hop + self.receptive if frames > 0 else 0

    def centres_sec(self, frames: int) -> list[float]:
        """Time in seconds of the middle of each frame's receptive field."""
        return [(i * self.hop + self.receptive / 2) / self.rate_hz for i in range(frames)]
