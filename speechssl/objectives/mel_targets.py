"""Log-mel frames as targets, and what a straight line between visible frames makes of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.geometry import FrameGeometry
from speechssl.models.backbone import normalize
from speechssl.models.blocks.norms import standardise
from speechssl.models.features.mel import HOP, LEAST_STD, RATE_HZ, LogMel, stack_frames
from speechssl.types import Batch


class MelTargets(nn.Module):
    """The log-mel frames of the clean waveform that each frame covers, side by side.

    Every bin has zero mean and unit variance over the utterance, so that gain does not matter.
    `objective` is for the complaint about frames that are no multiple of 10 ms.
    """

    def __init__(self, geometry: FrameGeometry, mel_bins: int, objective: str) -> None:
        super().__init__()
        if geometry.rate_hz != RATE_HZ or geometry.hop % HOP:
            raise ConfigError(
                f"objective {objective} stacks log-mel frames of {HOP} samples at {RATE_HZ} Hz; "
                f"the backbone has frames of {geometry.hop} samples at {geometry.rate_hz} Hz, "
                f"expected a multiple of {HOP} (backbone.conv_strides) at {RATE_HZ}"
            )
        self.geometry = geometry
        self.mel = LogMel(mel_bins)
        self.per_frame = geometry.hop // HOP  # R
        self.dim = mel_bins * self.per_frame  # n = R F

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """(B, T, n) for F bins in R stacked frames, n = R F, the bins of one frame together."""
        frames = self.geometry.frames(batch.wave.shape[1])
        mel = self.mel(normalize(batch.wave, batch.wave_lens))
        x = stack_frames(mel, batch.wave_lens, frames, self.geometry.hop)
        return standardise(x, batch.frame_lens, least_std=LEAST_STD)

    @torch.no_grad()
    def interpolated(self, x: Tensor, hidden: Tensor, lens: Tensor) -> Tensor:
        """Targets x (B, T, n) with hidden frames (B, T) replaced by a line between visible ones.

        The line is drawn from one log-mel frame to the next. Beyond the first or the last visible
        one it is flat; a row of which nothing is visible becomes its mean, 0.
        """
        mel = x.unflatten(2, (self.per_frame, -1)).flatten(1, 2)  # (B, T R, F)
        at = torch.arange(mel.shape[1], device=x.device)
        seen = ~hidden.repeat_interleave(self.per_frame, 1)
        seen = seen & (at < lens[:, None] * self.per_frame)
        before = torch.where(seen, at, -1).cummax(1).values
        after = torch.where(seen, at, len(at)).flip(1).cummin(1).values.flip(1)
        none = ~seen.any(1)[:, None, None]
        first = torch.where(before < 0, after, before).clamp(max=len(at) - 1)
        last = torch.where(after == len(at), before, after).clamp(min=0)
        share = (at - first).to(x.dtype) / (last - first).clamp(min=1)  # of the way, 0 where flat
        left, right = (mel.gather(1, i[..., None].expand_as(mel)) for i in (first, last))
        line = torch.lerp(left, right, share[..., None].clamp(0.0, 1.0).expand_as(mel))
        line = torch.where(seen[..., None], mel, line).masked_fill(none, 0.0)
        return line.unflatten(1, (-1, self.per_frame)).flatten(2)
