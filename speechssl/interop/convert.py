"""Models to and from the files of other toolkits, with proof that both compute alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from speechssl.atomic import replacing
from speechssl.audio.backend import wav2vec2_network
from speechssl.errors import CheckpointError
from speechssl.interop.foreign import Foreign
from speechssl.interop.keymap import Layout, from_ours
from speechssl.models.backbone import Backbone, build_backbone, normalize
from speechssl.models.bundle import load_weights, objective_class
from speechssl.models.hf_config import has_hf_class
from speechssl.models.presets import BackboneConfig

if TYPE_CHECKING:
    from speechssl.objectives.base import Objective

#: Largest difference that passes, of states whose largest value is 1 or less; else in proportion.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Difference:
    """How far one state of the network lies from that of the other implementation."""

    state: str
    padded: bool
    max_abs: float
    max_rel: float  # of the largest value of the other one

    @property
    def passes(self) -> bool:
        """Whether rounding alone explains it. NaN does not pass."""
        return self.max_abs <= TOLERANCE or self.max_rel <= TOLERANCE


def as_model(foreign: Foreign, where: str) -> tuple[Objective | Backbone, list[str]]:
    """Backbone or objective with a foreign checkpoint's weights, and what became of its head."""
    backbone = build_backbone(foreign.cfg)
    name, settings, told = None, {}, []
    if foreign.quantizer:
        name, settings = "wav2vec2", foreign.quantizer
    elif foreign.classes:
        name = "ctc"
    elif foreign.head:
        missing = "" if foreign.layout == "torchaudio" else " (no dict.ltr.txt beside the file)"
        told.append(
            f"head left out: {', '.join(sorted(foreign.head))}: its classes are not known" + missing
        )
    if name is None:
        load_weights(backbone, foreign.backbone, where)
        return backbone, told
    cls = objective_class(name)
    objective = cls(backbone, cls.Config(**settings), foreign.classes)
    weights = {f"backbone.{k}": v for k, v in foreign.backbone.items()}
    load_weights(objective, weights | foreign.head, where)
    return objective, [*told, f"head: {name}"]


def write_foreign(model: Objective | Backbone, layout: Layout, path: str | Path) -> list[str]:
    """Write a model as a checkpoint file of another toolkit; returns the tensors left out.

    fairseq: a checkpoint with `model`, and settings in `cfg`. torchaudio: a state dict for the
    network that `torchaudio_sizes` describes. CTC heads go along.
    Raises CheckpointError when the network has no counterpart there.
    """
    backbone, head = _parts(model)
    _must_have_counterpart(backbone.cfg, layout)
    weights = {**backbone.state_dict(), **{k: v for k, v in head.items() if "lm_head." in k}}
    left_out = sorted(head.keys() - weights.keys())
    if layout == "torchaudio":
        left_out.append("masked_spec_embed")
    found = from_ours(weights, layout, conv_norm=backbone.cfg.conv_norm)
    content: dict[str, Any] = dict(found)
    if layout == "fairseq":
        content = {"model": found, "args": None, "cfg": fairseq_settings(backbone.cfg)}
    with replacing(Path(path)) as fresh:
        torch.save(content, fresh)
    return left_out


def _parts(model: Objective | Backbone) -> tuple[Backbone, dict[str, Tensor]]:
    if isinstance(model, Backbone):
        return model, {}
    state = model.state_dict()
    return model.backbone, {k: v for k, v in state.items() if not k.startswith("backbone.")}


def _must_have_counterpart(cfg: BackboneConfig, layout: str) -> None:
    if not has_hf_class(cfg):
        raise CheckpointError(
            f"a backbone with context '{cfg.context}', conv_norm '{cfg.conv_norm}' and conv_first "
            f"'{cfg.conv_first}' has no counterpart in {layout}; the presets tiny, small, base and "
            "large have one"
        )


def fairseq_settings(cfg: BackboneConfig) -> dict[str, Any]:
    """The `cfg` of a fairseq wav2vec 2.0 checkpoint, plain tables only."""
    layers = zip(cfg.conv_dims, cfg.conv_kernels, cfg.conv_strides, strict=True)
    model = {
        "_name": "wav2vec2",
        "extractor_mode": {"group": "default", "layer": "layer_norm"}[cfg.conv_norm],
        "conv_feature_layers": " + ".join(f"[{layer}]" for layer in layers),
        "conv_bias": cfg.conv_bias,
        "encoder_layers": cfg.layers,
        "encoder_embed_dim": cfg.dim,
        "encoder_ffn_embed_dim": cfg.ffn,
        "encoder_attention_heads": cfg.heads,
        "layer_norm_first": cfg.norm == "pre",
        "conv_pos": cfg.pos_kernel,
        "conv_pos_groups": cfg.pos_groups,
        "dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout,
        "activation_dropout": cfg.activation_dropout,
        "encoder_layerdrop": cfg.layerdrop,
        "dropout_input": cfg.input_dropout,
        "dropout_features": cfg.feature_dropout,
        "feature_grad_mult": cfg.feature_grad_mult,
    }
    return {"model": model, "task": {"normalize": cfg.normalize, "sample_rate": cfg.rate_hz}}


def torchaudio_sizes(cfg: BackboneConfig, classes: int | None = None) -> dict[str, Any]:
    """Arguments of `torchaudio.models.wav2vec2_model` for a backbone and its CTC head."""
    layers = zip(cfg.conv_dims, cfg.conv_kernels, cfg.conv_strides, strict=True)
    return {
        "extractor_mode": {"group": "group_norm", "layer": "layer_norm"}[cfg.conv_norm],
        "extractor_conv_layer_config": [tuple(layer) for layer in layers],
        "extractor_conv_bias": cfg.conv_bias,
        "encoder_embed_dim": cfg.dim,
        "encoder_projection_dropout": cfg.input_dropout,
        "encoder_pos_conv_kernel": cfg.pos_kernel,
        "encoder_pos_conv_groups": cfg.pos_groups,
        "encoder_num_layers": cfg.layers,
        "encoder_num_heads": cfg.heads,
        "encoder_attention_dropout": cfg.attention_dropout,
        "encoder_ff_interm_features": cfg.ffn,
        "encoder_ff_interm_dropout": cfg.activation_dropout,
        "encoder_dropout": cfg.dropout,
        "encoder_layer_norm_first": cfg.norm == "pre",
        "encoder_layer_drop": cfg.layerdrop,
        "aux_num_out": classes,
    }


@torch.no_grad()
def compare_with_torchaudio(model: Objective | Backbone, seed: int = 1) -> list[Difference]:
    """Every state of the network beside torchaudio's implementation of it, on random audio.

    One utterance alone, and two of different lengths where the norm of the convolutions allows it:
    a group norm over time counts padding there and not here.
    Raises CheckpointError when the network has no counterpart there.
    """
    backbone, head = _parts(model)
    _must_have_counterpart(backbone.cfg, "torchaudio")
    own = {**backbone.state_dict(), **{k: v for k, v in head.items() if "lm_head." in k}}
    classes = len(own["lm_head.bias"]) if "lm_head.bias" in own else None
    theirs = wav2vec2_network(**torchaudio_sizes(backbone.cfg, classes)).eval()
    theirs.load_state_dict(from_ours(own, "torchaudio"))
    backbone.eval()
    samples = backbone.geometry.receptive + 40 * backbone.geometry.hop
    lens = torch.tensor([samples, samples - 17 * backbone.geometry.hop - 3])
    generator = torch.Generator().manual_seed(seed)
    wave = 0.1 * torch.randn(2, samples, generator=generator)
    wave[1, int(lens[1]) :] = 0.0
    found = []
    for padded in (False, True) if backbone.cfg.conv_norm == "layer" else (False,):
        rows = 2 if padded else 1
        x, n = wave[:rows], lens[:rows]
        heard = normalize(x, n) if backbone.cfg.normalize else x
        states = backbone(x, n, layers=True)
        between, _ = theirs.extract_features(heard, n if padded else None)
        last = theirs(heard, n if padded else None)[0]
        mine = states.x
        if classes is not None:
            mine = mine @ own["lm_head.weight"].T + own["lm_head.bias"]
        pairs = [(f"layer {i}", states.layers[i], between[i - 1]) for i in range(1, len(between))]
        pairs.append(("output" if classes is None else "logits", mine, last))
        valid = ~states.pad
        for name, ours, other in pairs:
            difference = float((ours - other)[valid].abs().max())
            size = float(other[valid].abs().max())
            found.append(Difference(name, padded, difference, difference / max(size, 1e-30)))
    return found
