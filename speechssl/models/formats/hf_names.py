"""Names of tensors in a Hugging Face folder, which are ours but for a few."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from speechssl.models.formats.hf_config import FAMILIES
from speechssl.models.presets import BackboneConfig

_OURS = "backbone."  # of our module tree
_CONFORMER = "wav2vec2-conformer"
#: Attention of their conformer: ours, theirs.
_PARTS = (
    (".attention.q_proj.", ".self_attn.linear_q."),
    (".attention.k_proj.", ".self_attn.linear_k."),
    (".attention.v_proj.", ".self_attn.linear_v."),
    (".attention.out_proj.", ".self_attn.linear_out."),
    (".attention.pos_proj.", ".self_attn.linear_pos."),
    (".attention.pos_bias_", ".self_attn.pos_bias_"),
)
#: What their conformer holds and never uses, or can be computed.
_UNUSED = ("encoder.pos_conv_embed.", "encoder.embed_positions.")


def to_file(weights: Mapping[str, Tensor], cfg: BackboneConfig, kind: str) -> dict[str, Tensor]:
    """Tensors of an Objective (or Backbone) under the names of a folder of family `kind`.

    What their class holds besides, without using it, is there too, so that none is missing.
    """
    prefix = FAMILIES[kind][0]
    wrapped = any(name.startswith(_OURS) for name in weights)
    found = {}
    for name, value in weights.items():
        if kind == _CONFORMER:
            for ours, theirs in _PARTS:
                name = name.replace(ours, theirs)
        found[prefix + name.removeprefix(_OURS) if name.startswith(_OURS) else name] = value
    if kind == _CONFORMER:
        found |= {(prefix if wrapped else "") + name: x for name, x in _unused(cfg).items()}
    return found


def within(name: str, kind: str) -> str | None:
    """Our name of a tensor inside a backbone of family `kind`; None for what has no use."""
    if kind != _CONFORMER:
        return name
    if name.startswith(_UNUSED):
        return None
    for ours, theirs in _PARTS:
        name = name.replace(theirs, ours)
    return name


def from_file(weights: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of a folder of ours, written as family `kind`; undoes `to_file`."""
    prefix = FAMILIES[kind][0]
    wrapped = any(name.startswith(prefix) for name in weights)
    found = {}
    for name, value in weights.items():
        inside = name.startswith(prefix)
        bare = within(name.removeprefix(prefix), kind) if inside or not wrapped else name
        if bare is not None:
            found[_OURS + bare if inside else bare] = value
    return found


def _unused(cfg: BackboneConfig) -> dict[str, Tensor]:
    conv = "encoder.pos_conv_embed.conv."
    kernel, width = cfg.pos_kernel, cfg.dim // cfg.pos_groups
    found = {
        f"{conv}bias": torch.zeros(cfg.dim),
        f"{conv}parametrizations.weight.original0": torch.ones(1, 1, kernel),
        f"{conv}parametrizations.weight.original1": torch.ones(cfg.dim, width, kernel),
    }
    if cfg.attention_positions == "rotary":
        half = torch.arange(0, cfg.dim // cfg.heads, 2, dtype=torch.int64).float()
        rates = 1.0 / (10000 ** (half / (cfg.dim // cfg.heads)))
        found["encoder.embed_positions.inv_freq"] = rates
    return found
