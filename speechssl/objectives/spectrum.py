"""What a frame sounds like, as a target: stacked log-mel frames of the clean waveform."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.geometry import FrameGeometry
from speechssl.models.backbone import normalize
from speechssl.models.blocks.norms import standardise
from speechssl.models.features.mel import HOP, LEAST_STD, RATE_HZ, WINDOW, LogMel, stack_frames
from speechssl.types import Batch


class Spectrum(nn.Module):
    """The log-mel frames that begin within a frame, side by side, without parameters.

    Every bin has zero mean and unit variance over its utterance. Raises ConfigError for a frame
    clock that is not one of whole log-mel frames.
    """

    def __init__(self, geometry: FrameGeometry, mel_bins: int) -> None:
        super().__init__()
        if geometry.rate_hz != RATE_HZ or geometry.hop % HOP:
            raise ConfigError(
                f"the objective stacks log-mel frames of {HOP} samples at {RATE_HZ} Hz; the "
                f"backbone has frames of {geometry.hop} samples at {geometry.rate_hz} Hz, expected "
                f"a multiple of {HOP} (backbone.conv_strides) at {RATE_HZ}"
            )
        self.geometry = geometry
        self.mel = LogMel(mel_bins)
        self.dim = mel_bins * geometry.hop // HOP
        #: Samples that row i is made of, from sample i * hop on.
        self.receptive = geometry.hop - HOP + WINDOW

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """(B, T, n) float32 of every frame of a batch; 0 in padding."""
        frames = self.geometry.frames(batch.wave.shape[1])
        mel = self.mel(normalize(batch.wave, batch.wave_lens))
        x = stack_frames(mel, batch.wave_lens, frames, self.geometry.hop)  # (B, T, n)
        return standardise(x, batch.frame_lens, least_std=LEAST_STD)
