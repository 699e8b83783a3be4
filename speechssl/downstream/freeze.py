"""Which parts of a pre-trained backbone learn: nothing, the context network, or everything."""

from __future__ import annotations

import torch
from torch import nn

from speechssl.models.backbone import Backbone
from speechssl.types import Batch, Frames


def freeze(module: nn.Module) -> None:
    """Take the parameters of `module` out of training for good; optimizers leave them out."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def freeze_features(backbone: Backbone) -> None:
    """Freeze the network from waveform to local features (wav2vec 2.0, arXiv 2006.11477, 4.3)."""
    freeze(backbone.feature_extractor)


def backbone_frames(
    backbone: Backbone,
    batch: Batch,
    *,
    features_learn: bool,
    context_learns: bool,
    layers: bool = False,
) -> Frames:
    """Contextual frames of a batch, x (B, T, D), with the masks the batch carries.

    Gradients flow only into the parts that learn; the rest runs without keeping activations.
    """
    wanted = torch.is_grad_enabled() and context_learns
    with torch.set_grad_enabled(wanted and features_learn):
        z = backbone.encode(batch.wave, batch.wave_lens)
    with torch.set_grad_enabled(wanted):
        return backbone.context(z, batch.mask, channel_mask=batch.channel_mask, layers=layers)
