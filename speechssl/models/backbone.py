"""The one network every objective shares: feature encoder, context network, mask embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.context.conv import ConvAggregator
from speechssl.models.context.gru import GRUStack
from speechssl.models.context.transformer import Transformer
from speechssl.models.features.conv import ConvEncoder, scale_gradient
from speechssl.models.features.wav2vec import Wav2VecEncoder
from speechssl.models.presets import BackboneConfig
from speechssl.types import Frames


class Projection(nn.Module):
    """Layer norm over channels (or none), linear map into the context network, dropout."""

    def __init__(self, channels: int, dim: int, dropout: float, *, norm: bool = True) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels) if norm else nn.Identity()
        self.projection = nn.Linear(channels, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """X (B, T, C) -> (B, T, D)."""
        return F.dropout(self.project(x), self.dropout, self.training)

    def project(self, x: Tensor) -> Tensor:
        """X (B, T, C) -> (B, T, D), without dropout."""
        return self.projection(self.layer_norm(x))


class Backbone(nn.Module):
    """Raw audio to contextual frames, with both seams public: `encode` and `context`.

    Valid frames never depend on padding or on the other utterances of a batch. Parameter names
    are Hugging Face's for Wav2Vec2Model.
    """

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.dim = cfg.dim
        self.num_layers = cfg.layers
        if cfg.context == "conv":
            self.feature_extractor: nn.Module = Wav2VecEncoder(cfg)
            self.encoder: nn.Module = ConvAggregator(cfg)
            self.feature_projection = None
        else:
            self.feature_extractor = ConvEncoder(cfg)
            self.encoder = GRUStack(cfg) if cfg.context == "gru" else Transformer(cfg)
            self.feature_projection = Projection(
                cfg.conv_dims[-1], cfg.dim, cfg.input_dropout, norm=cfg.projection_norm
            )
            self.masked_spec_embed = nn.Parameter(torch.rand(cfg.dim))
        self.geometry = self.feature_extractor.geometry
        self.causal: bool = self.encoder.causal  # what that means: `BackboneConfig.looks_back`

    def begin_step(self, seed: int, step: int) -> None:
        """Decisions that hold for a whole update, equal on all ranks (LayerDrop)."""
        if isinstance(self.encoder, Transformer):
            self.encoder.begin_step(seed, step)

    def encode(self, wave: Tensor, wave_lens: Tensor) -> Frames:
        """Wave (B, S) in [-1, 1], wave_lens (B,) samples -> local features, x (B, T, C).

        x is the raw output of the last convolution; its gradient is scaled by feature_grad_mult.
        Raises ValueError when no utterance is long enough for one frame.
        """
        if wave.shape[1] < self.geometry.receptive:
            raise ValueError(
                f"batch of {wave.shape[1]} samples gives no frame; "
                f"expected at least {self.geometry.receptive} samples: pad with zeros or drop it"
            )
        if self.cfg.normalize:
            wave = normalize(wave, wave_lens)
        scale = self.cfg.feature_grad_mult
        with torch.set_grad_enabled(torch.is_grad_enabled() and scale != 0.0):
            z = self.feature_extractor(wave, wave_lens)
        return Frames(scale_gradient(z.x, scale), z.lens)

    def features(self, z: Frames) -> Tensor:
        """Normalised local features (B, T, C) with their own dropout: what quantisers read."""
        x = z.x if self.feature_projection is None else self.feature_projection.layer_norm(z.x)
        return F.dropout(x, self.cfg.feature_dropout, self.training)

    def project(self, z: Frames) -> Frames:
        """What the context network makes its input of, x (B, T, D): no mask yet, no dropout.

        Raises ValueError for the convolutional aggregator, which reads the local features.
        """
        if self.feature_projection is None:
            raise ValueError("the convolutional aggregator has no projection before it")
        return Frames(self.feature_projection.project(z.x), z.lens)

    def context(
        self,
        z: Frames,
        mask: Tensor | None = None,
        *,
        channel_mask: Tensor | None = None,
        layers: bool = False,
    ) -> Frames:
        """Local features -> contextual frames, x (B, T, D).

        mask (B, T) bool puts the learnt mask vector where True; channel_mask (B, D) bool sets
        channels to zero. With `layers`, Frames.layers holds num_layers + 1 states: the input of
        each layer, then the final output.
        """
        if self.feature_projection is None:
            if mask is not None or channel_mask is not None:
                raise ValueError("the convolutional aggregator takes no masks")
            return self.encoder(z, layers=layers)
        x = self.feature_projection(z.x)
        if mask is not None:
            x = torch.where(mask[:, :, None], self.masked_spec_embed.to(x.dtype), x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None, :], 0.0)
        return self.encoder(Frames(x, z.lens), layers=layers)

    def forward(self, wave: Tensor, wave_lens: Tensor, *, layers: bool = False) -> Frames:
        """Wave (B, S), wave_lens (B,) -> contextual frames, x (B, T, D)."""
        return self.context(self.encode(wave, wave_lens), layers=layers)


def normalize(wave: Tensor, lens: Tensor) -> Tensor:
    """Zero mean and unit variance per utterance over its valid samples; padding stays zero.

    Differs: fairseq adds 1e-5 to the variance; we add 1e-7, as the feature extractor of Hugging
    Face does, so that a model folder means the same there.
    """
    valid = torch.arange(wave.shape[1], device=wave.device)[None, :] < lens[:, None]
    count = lens.clamp(min=1)[:, None]
    mean = wave.masked_fill(~valid, 0.0).sum(1, keepdim=True) / count
    centred = (wave - mean).masked_fill(~valid, 0.0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + 1e-7).sqrt()


def build_backbone(cfg: BackboneConfig) -> Backbone:
    """The network a configuration describes: a Backbone, or the log-mel baseline in its place."""
    if cfg.context == "none":
        from speechssl.models.mel_backbone import MelBackbone

        return MelBackbone(cfg)
    return Backbone(cfg)
