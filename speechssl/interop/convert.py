"""Models to and from the files of other toolkits, with proof that both compute alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from speechssl.atomic import replacing
from speechssl.audio.backend import wav2vec2_network
from speechssl.errors import CheckpointError
from speechssl.models.backbone import Backbone, normalize
from speechssl.models.folder import read_json
from speechssl.models.formats.hf_config import family
from speechssl.models.formats.keymap import Layout, from_ours
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


def has_counterpart(cfg: BackboneConfig, layout: Layout) -> bool:
    """Whether the toolkit has a network that computes the same."""
    kinds = {
        "fairseq": ("wav2vec2", "wavlm", "data2vec-audio"),
        "torchaudio": ("wav2vec2", "wavlm"),
    }
    return family(cfg) in kinds[layout] and cfg.activation == "gelu"


def _must_have_counterpart(cfg: BackboneConfig, layout: Layout) -> None:
    if not has_counterpart(cfg, layout):
        raise CheckpointError(
            f"a backbone with context '{cfg.context}', conv_norm '{cfg.conv_norm}', conv_first "
            f"'{cfg.conv_first}', pos_conv '{cfg.pos_conv}', projection_norm "
            f"{cfg.projection_norm} and causal {cfg.causal} has no counterpart in {layout}; the "
            "presets tiny, small, base and large have one"
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
    if cfg.pos_conv == "stack":
        model |= {
            "_name": "data2vec_audio",
            "conv_pos": cfg.pos_kernel * cfg.pos_depth,
            "pos_conv_depth": cfg.pos_depth,
        }
    if cfg.attention_positions == "gated_relative":
        model |= {
            "_name": "wavlm",
            "relative_position_embedding": True,
            "gru_rel_pos": True,
            "num_buckets": cfg.rel_buckets,
            "max_distance": cfg.rel_max_distance,
        }
    return {"model": model, "task": {"normalize": cfg.normalize, "sample_rate": cfg.rate_hz}}


def torchaudio_sizes(cfg: BackboneConfig, classes: int | None = None) -> dict[str, Any]:
    """Arguments of torchaudio's `wav2vec2_model` or `wavlm_model` for a backbone and CTC head."""
    layers = zip(cfg.conv_dims, cfg.conv_kernels, cfg.conv_strides, strict=True)
    sizes = {
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
    if cfg.attention_positions == "gated_relative":
        sizes |= {
            "encoder_num_buckets": cfg.rel_buckets,
            "encoder_max_distance": cfg.rel_max_distance,
        }
    return sizes


@torch.no_grad()
def compare_with_torchaudio(model: Objective | Backbone, seed: int = 1) -> list[Difference]:
    """Every state of the network beside torchaudio's implementation of it; see `compare`.

    Raises CheckpointError when the network has no counterpart there.
    """
    backbone, head = _parts(model)
    _must_have_counterpart(backbone.cfg, "torchaudio")
    own = {**backbone.state_dict(), **{k: v for k, v in head.items() if "lm_head." in k}}
    classes = len(own["lm_head.bias"]) if "lm_head.bias" in own else None
    theirs = wav2vec2_network(**torchaudio_sizes(backbone.cfg, classes)).eval()
    theirs.load_state_dict(from_ours(own, "torchaudio"))

    def states(wave: Tensor) -> dict[str, Tensor]:
        between, _ = theirs.extract_features(wave)
        found = {f"layer {i}": x for i, x in enumerate(between[:-1], start=1)}
        return found | {"output" if classes is None else "logits": theirs(wave)[0]}

    return compare(model, states, seed)


@torch.no_grad()
def compare_with_transformers(
    model: Objective | Backbone, folder: str | Path, seed: int = 1
) -> list[Difference]:
    """Every state of the network beside what `transformers` makes of a folder; see `compare`.

    Raises CheckpointError when it misses a tensor, or has no use for one.
    """
    import transformers

    backbone, _ = _parts(model)
    (name,) = read_json(Path(folder), "config.json")["architectures"]
    cls = getattr(transformers, name)
    theirs, about = cls.from_pretrained(folder, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if about[problem]:
            raise CheckpointError(f"{folder}: transformers: {problem} {sorted(about[problem])[:5]}")
    theirs.eval()
    network = getattr(theirs, theirs.base_model_prefix, theirs)

    def states(wave: Tensor) -> dict[str, Tensor]:
        found = network(wave, output_hidden_states=True)
        named = {f"layer {i}": x for i, x in enumerate(found.hidden_states[1:-1], start=1)}
        if hasattr(theirs, "lm_head"):
            return named | {"logits": theirs(wave).logits}
        return named | {"output": found.last_hidden_state}

    if not hasattr(theirs, "lm_head"):
        model = backbone
    return compare(model, states, seed)


def compare(
    model: Objective | Backbone, theirs: Callable[[Tensor], dict[str, Tensor]], seed: int
) -> list[Difference]:
    """Every state that `theirs` names for a wave (1, S), beside ours, on random audio.

    Three utterances of different lengths, each alone; then the same ones in a padded batch of
    ours, still beside theirs alone: padding must change nothing.
    """
    backbone, head = _parts(model)
    model.eval()
    samples = backbone.geometry.receptive + 40 * backbone.geometry.hop
    lens = torch.tensor([samples, samples - 17 * backbone.geometry.hop - 3, samples // 3])
    wave = 0.1 * torch.randn(3, samples, generator=torch.Generator().manual_seed(seed))
    alone = [wave[i : i + 1, :n] for i, n in enumerate(lens.tolist())]
    expected = []
    for x in alone:
        heard = normalize(x, torch.tensor([x.shape[1]])) if backbone.cfg.normalize else x
        expected.append(theirs(heard))
    wave[torch.arange(samples) >= lens[:, None]] = 0.0
    padded = _states(backbone, head, wave, lens)
    found = []
    for name in expected[0]:
        for where in (False, True):
            largest = size = 0.0
            for row, n in enumerate(lens):
                other = expected[row][name][0]
                if where:
                    mine = padded[name][row, : len(other)]
                else:
                    mine = _states(backbone, head, alone[row], n[None])[name][0]
                largest = max(largest, float((mine - other).abs().nan_to_num(torch.inf).max()))
                size = max(size, float(other.abs().max()))
            found.append(Difference(name, where, largest, largest / max(size, 1e-30)))
    return sorted(found, key=lambda one: one.padded)


def _states(
    backbone: Backbone, head: dict[str, Tensor], wave: Tensor, lens: Tensor
) -> dict[str, Tensor]:
    """Our states under the names of the comparison."""
    states = backbone(wave, lens, layers=True)
    named = {f"layer {i}": x for i, x in enumerate(states.layers)} | {"output": states.x}
    if "lm_head.weight" in head:
        named["logits"] = states.x @ head["lm_head.weight"].T + head["lm_head.bias"]
    return named
