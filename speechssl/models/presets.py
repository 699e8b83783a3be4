"""Sizes of backbones as data. Torch-free, so that configs and help can be read without it."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from speechssl.errors import ConfigError


@dataclass(frozen=True)
class BackboneConfig:
    """Shape and regularisation of a backbone; the defaults are the preset `tiny`.

    conv_norm: `group` normalises layer 0 per channel over time (wav2vec 2.0 base), `layer` every
    layer over channels (LV60, XLS-R), `global` every layer over channels and time (wav2vec v1).
    conv_first: layer 0 is a convolution like the others, or a learnt `filterbank` of conv_dims[0]
    bands that starts on the mel scale (no counterpart at Hugging Face).
    context: `transformer`, `conv` (wav2vec v1's aggregator, which looks backwards but for its
    norms), `gru` (recurrent layers that only look backwards) or `none` (log-mel baseline).
    causal: the transformer looks backwards only: attention, positions and conformer blocks.
    projection_norm: a layer norm stands before the projection into the context network.
    pos_conv: positions by one convolution with weight norm (wav2vec 2.0), by a plain one on
    batch-normed frames (`batch_norm`, some HuBERT), by `pos_depth` plain ones with layer norms
    (`stack`, data2vec), or not at all.
    attention_positions: `gated_relative` adds WavLM's gated bias of relative positions in
    `rel_buckets` buckets, the outermost of which begin at `rel_max_distance` frames; `rotary` turns
    what queries and keys are made of; `relative` scores sinusoids of the distance.
    block: `transformer`, or `conformer` with a depthwise convolution of `block_kernel` frames and
    the norm `block_norm` in it (`batch`, by stored statistics, is for published models).
    """

    preset: str = "tiny"
    rate_hz: int = 16000
    normalize: bool = True  # waveform to zero mean and unit variance over its valid samples
    conv_dims: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 256)
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = True
    conv_norm: Literal["group", "layer", "global"] = "layer"
    conv_first: Literal["conv", "filterbank"] = "conv"
    context: Literal["transformer", "conv", "gru", "none"] = "transformer"
    causal: bool = False  # of a transformer; see `looks_back`
    context_kernels: tuple[int, ...] = ()  # of the conv aggregator, one per layer
    dim: int = 256
    layers: int = 4
    heads: int = 4
    ffn: int = 1024
    norm: Literal["post", "pre"] = "pre"
    projection_norm: bool = True
    pos_conv: Literal["weight_norm", "batch_norm", "stack", "none"] = "weight_norm"
    pos_depth: int = 1
    pos_kernel: int = 32
    pos_groups: int = 16
    attention_positions: Literal["none", "gated_relative", "rotary", "relative"] = "none"
    rel_buckets: int = 320
    rel_max_distance: int = 800
    block: Literal["transformer", "conformer"] = "transformer"
    block_kernel: int = 31
    block_norm: Literal["layer", "batch"] = "layer"
    block_dropout: float = 0.1  # after the depthwise convolution of a conformer block
    activation: Literal["gelu", "swish"] = "gelu"  # of the feed-forward layers and conformer blocks
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    layerdrop: float = 0.0
    input_dropout: float = 0.0  # after the projection into the context network
    feature_dropout: float = 0.0  # on the local features that targets are made of
    feature_grad_mult: float = 1.0  # gradient scale of the convolutional encoder; 0 freezes it

    def __post_init__(self) -> None:
        counts = {len(self.conv_dims), len(self.conv_kernels), len(self.conv_strides)}
        if len(counts) != 1:
            raise ConfigError(
                "backbone: conv_dims, conv_kernels and conv_strides must be equally long, got "
                f"{len(self.conv_dims)}, {len(self.conv_kernels)}, {len(self.conv_strides)}"
            )
        names = ("dim", "heads", "pos_groups", "pos_depth", "rel_buckets", "rel_max_distance")
        names += ("block_kernel",)
        sizes = {name: getattr(self, name) for name in names}
        if bad := {k: v for k, v in sizes.items() if v < 1}:
            raise ConfigError(f"backbone: got {bad}, expected 1 or more")
        if self.context == "transformer" and (self.dim % self.heads or self.dim % self.pos_groups):
            raise ConfigError(
                f"backbone: dim {self.dim} must be a multiple of heads ({self.heads}) "
                f"and of pos_groups ({self.pos_groups})"
            )
        if self.context == "conv" and len(self.context_kernels) != self.layers:
            raise ConfigError(
                f"backbone: layers is {self.layers} but context_kernels has "
                f"{len(self.context_kernels)} entries; expected one kernel per layer"
            )
        if self.context == "none" and self.layers:
            raise ConfigError("backbone: context 'none' has no layers; set layers to 0")
        if self.conv_first == "filterbank" and self.conv_norm != "layer":
            raise ConfigError(
                "backbone: conv_first 'filterbank' stands below layers with conv_norm 'layer', "
                f"got '{self.conv_norm}'"
            )
        if self.pos_conv != "stack" and self.pos_depth != 1:
            raise ConfigError(
                f"backbone: pos_depth {self.pos_depth} is for pos_conv 'stack', got "
                f"'{self.pos_conv}'; expected pos_depth 1"
            )
        if self.attention_positions == "gated_relative" and not (
            self.rel_buckets % 4 == 0 and 4 * self.rel_max_distance > self.rel_buckets
        ):
            raise ConfigError(
                f"backbone: got rel_buckets {self.rel_buckets} and rel_max_distance "
                f"{self.rel_max_distance}; expected a multiple of 4 and a distance above a quarter "
                "of it"
            )
        without = (
            [] if self.block == "conformer" else ["block_kernel", "block_norm", "block_dropout"]
        )
        if self.attention_positions != "gated_relative":
            without += ["rel_buckets", "rel_max_distance"]
        if ignored := [k for k in without if getattr(self, k) != getattr(type(self), k)]:
            raise ConfigError(
                f"backbone: {', '.join(ignored)} would do nothing with block '{self.block}' and "
                f"attention_positions '{self.attention_positions}' (block_* are for 'conformer', "
                "rel_* for 'gated_relative'); leave them out"
            )
        if self.block == "conformer" and (self.norm != "pre" or self.block_kernel % 2 == 0):
            raise ConfigError(
                f"backbone: block 'conformer' has a last norm and an odd kernel; got norm "
                f"'{self.norm}' and block_kernel {self.block_kernel}, expected 'pre' and an odd one"
            )
        if self.attention_positions == "rotary" and self.dim // self.heads % 2:
            raise ConfigError(
                f"backbone: rotary positions turn pairs of channels; a head has "
                f"{self.dim // self.heads} of them (dim / heads), expected an even number"
            )
        elsewhere: tuple[str, ...] = () if self.context == "transformer" else _TRANSFORMER_ONLY
        if self.context == "gru":
            elsewhere = tuple(key for key in elsewhere if key not in _ALSO_GRU)
        if self.context != "conv":
            elsewhere += ("context_kernels",)
        if ignored := [k for k in elsewhere if getattr(self, k) != getattr(type(self), k)]:
            raise ConfigError(
                f"backbone: context '{self.context}' has no use for {', '.join(ignored)}; leave "
                "them out, or change context (its presets: wav2vec for conv, gru-tiny for gru, "
                "logmel for none)"
            )
        if self.looks_back and self.conv_norm != "layer":
            asked = "context 'gru'" if self.context == "gru" else "causal true"
            raise ConfigError(
                f"backbone: {asked} needs frames that know nothing of later ones; conv_norm "
                f"'{self.conv_norm}' takes statistics over the whole utterance, expected 'layer'"
            )

    @property
    def looks_back(self) -> bool:
        """Whether no frame depends on samples after its own.

        But for two numbers: with `normalize` the mean and the gain of the waveform are those of the
        whole utterance. They are fixed functions of it, so that training cannot make them carry
        more, unlike statistics of learnt features, which are refused.
        """
        return self.context == "gru" or self.causal


_TRANSFORMER_ONLY = (
    "causal",
    "conv_first",
    "heads",
    "ffn",
    "norm",
    "projection_norm",
    "pos_conv",
    "pos_depth",
    "pos_kernel",
    "pos_groups",
    "attention_positions",
    "rel_buckets",
    "rel_max_distance",
    "block",
    "block_kernel",
    "block_norm",
    "block_dropout",
    "activation",
    "attention_dropout",
    "activation_dropout",
    "layerdrop",
    "input_dropout",
)
_ALSO_GRU = ("conv_first", "projection_norm", "input_dropout")


_BASE = {
    "normalize": False,
    "conv_dims": (512,) * 7,
    "conv_bias": False,
    "conv_norm": "group",
    "dim": 768,
    "layers": 12,
    "heads": 12,
    "ffn": 3072,
    "norm": "post",
    "pos_kernel": 128,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "layerdrop": 0.05,
    "input_dropout": 0.1,
    "feature_dropout": 0.1,
    "feature_grad_mult": 0.1,
}
_LARGE = {"dim": 1024, "layers": 24, "heads": 16, "ffn": 4096}

#: Name -> what differs from `tiny`. Published sizes: spec of wav2vec 2.0 (arXiv 2006.11477),
#: XLS-R (2111.09296), WavLM (2110.13900), wav2vec (1904.05862, the `large` aggregator of the
#: released model).
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "filterbank-tiny": {
        "conv_dims": (128, 256, 256),
        "conv_kernels": (400, 2, 2),
        "conv_strides": (160, 2, 2),  # 25 frames a second: half the work of 50
        "conv_first": "filterbank",
    },
    "gru-tiny": {"context": "gru", "layers": 3},
    "small": {"conv_dims": (256,) * 7, "dim": 384, "layers": 6, "heads": 6, "ffn": 1536},
    "base": _BASE,
    "wavlm-base": _BASE | {"attention_positions": "gated_relative"},
    "large": _BASE | _LARGE | {"dropout": 0.0, "layerdrop": 0.2},
    "xlsr-300m": _LARGE
    | {"conv_dims": (512,) * 7, "pos_kernel": 128, "dropout": 0.0, "normalize": True},
    "wav2vec": {
        "normalize": False,
        "conv_dims": (512,) * 7,
        "conv_kernels": (10, 8, 4, 4, 4, 1, 1),
        "conv_strides": (5, 4, 2, 2, 2, 1, 1),
        "conv_bias": False,
        "conv_norm": "global",
        "context": "conv",
        "context_kernels": tuple(range(2, 14)),
        "dim": 512,
        "layers": 12,
        "dropout": 0.0,
    },
    "wav2vec-tiny": {
        "normalize": True,
        "conv_dims": (64, 64, 128, 128, 256),
        "conv_kernels": (10, 8, 4, 4, 4),
        "conv_strides": (5, 4, 2, 2, 2),
        "conv_bias": False,
        "conv_norm": "global",
        "context": "conv",
        "context_kernels": (3,) * 6,
        "dim": 256,
        "layers": 6,
        "dropout": 0.0,
    },
    "logmel": {
        "normalize": False,
        "conv_dims": (160,),
        "conv_kernels": (400,),
        "conv_strides": (320,),
        "context": "none",
        "dim": 160,
        "layers": 0,
    },
}


def preset(name: str, **overrides: Any) -> BackboneConfig:
    """The configuration of a named size, with `overrides` on top.

    Raises ConfigError for an unknown name.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"backbone.preset: got '{name}', expected one of {', '.join(PRESETS)}{hint}"
        )
    values: dict[str, Any] = {"preset": name} | PRESETS[name] | overrides
    return BackboneConfig(**values)
