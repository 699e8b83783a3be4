"""Log-mel features in the place of a backbone: what learnt representations are measured against."""

from __future__ import annotations

from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.geometry import FrameGeometry
from speechssl.models.backbone import Backbone, normalize
from speechssl.models.blocks.norms import standardise
from speechssl.models.features.mel import HOP, LEAST_STD, WINDOW, LogMel, stack_frames
from speechssl.models.presets import BackboneConfig
from speechssl.types import Frames

#: Level and spread of speech in Kaldi's log-mel (measured on read English): brings values near 1.
LEVEL, SPREAD = 14.0, 4.0


class MelBackbone(Backbone):
    """Two neighbouring 80-bin log-mel frames of 10 ms as one frame of 20 ms; no parameters.

    Frames line up with those of wav2vec 2.0: frame i starts at sample 320 i. With conv_norm
    `group` each bin gets zero mean and unit variance over the valid frames of its utterance, as
    the group norm of wav2vec 2.0 does per channel; otherwise the scale is fixed, which keeps the
    mean spectrum that mean pooling needs. Masked frames and channels become 0.
    """

    def __init__(self, cfg: BackboneConfig) -> None:
        nn.Module.__init__(self)  # the interface of Backbone without its networks
        bins = cfg.dim // 2
        clock = (cfg.conv_kernels, cfg.conv_strides, cfg.rate_hz)
        if clock != ((WINDOW,), (2 * HOP,), 16000) or cfg.dim % 2 or cfg.conv_dims != (cfg.dim,):
            raise ConfigError(
                f"backbone: log-mel has conv_kernels ({WINDOW},), conv_strides ({2 * HOP},), "
                "rate_hz 16000 and conv_dims equal to an even dim; got "
                f"{cfg.conv_kernels}, {cfg.conv_strides}, {cfg.rate_hz}, {cfg.conv_dims}, "
                f"dim {cfg.dim}; start from the preset 'logmel'"
            )
        self.cfg = cfg
        self.dim = cfg.dim
        self.num_layers = 0
        self.geometry = FrameGeometry(cfg.conv_kernels, cfg.conv_strides, cfg.rate_hz)
        self.causal = False
        self.feature_extractor = LogMel(bins)

    def begin_step(self, seed: int, step: int) -> None:
        """Nothing here depends on the step."""

    def encode(self, wave: Tensor, wave_lens: Tensor) -> Frames:
        """Stacked log-mel x (B, T, 160) of wave (B, S) in [-1, 1], wave_lens (B,) samples."""
        if wave.shape[1] < WINDOW:
            raise ValueError(
                f"batch of {wave.shape[1]} samples gives no frame; expected at least {WINDOW}"
            )
        if self.cfg.normalize:
            wave = normalize(wave, wave_lens)
        mel = (self.feature_extractor(wave) - LEVEL) / SPREAD  # (B, F, bins)
        lens = self.geometry.frames(wave_lens)
        x = stack_frames(mel, wave_lens, self.geometry.frames(wave.shape[1]), self.geometry.hop)
        if self.cfg.conv_norm == "group":
            x = standardise(x, lens, least_std=LEAST_STD / SPREAD)
        return Frames(x, lens)

    def features(self, z: Frames) -> Tensor:
        """The local features themselves (B, T, 160)."""
        return z.x

    def context(
        self,
        z: Frames,
        mask: Tensor | None = None,
        *,
        channel_mask: Tensor | None = None,
        layers: bool = False,
    ) -> Frames:
        """The local features with masked frames and channels set to 0; the only state is x."""
        x = z.x
        if mask is not None:
            x = x.masked_fill(mask[..., None], 0.0)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None, :], 0.0)
        return Frames(x, z.lens, (x,) if layers else ())
