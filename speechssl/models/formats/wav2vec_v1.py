"""fairseq checkpoints of wav2vec, the first: two stacks of convolutions and a predictor.

Source: fairseq 0.12, models/wav2vec/wav2vec.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechssl.errors import CheckpointError
from speechssl.models.formats.stored import Stored
from speechssl.models.presets import BackboneConfig
from speechssl.models.weights import some

#: Theirs, ours; a dropout or a padding stands between, which counts but has no tensors.
_NAMES = (
    (
        r"feature_extractor\.conv_layers\.(\d+)\.0\.weight",
        r"feature_extractor.conv_layers.\1.conv.weight",
    ),
    (
        r"feature_extractor\.conv_layers\.(\d+)\.2\.(weight|bias)",
        r"feature_extractor.conv_layers.\1.layer_norm.\2",
    ),
    (r"feature_aggregator\.conv_layers\.(\d+)\.1\.(weight|bias)", r"encoder.layers.\1.conv.\2"),
    (
        r"feature_aggregator\.conv_layers\.(\d+)\.3\.(weight|bias)",
        r"encoder.layers.\1.layer_norm.\2",
    ),
    (r"feature_aggregator\.residual_proj\.(\d+)\.weight", r"encoder.layers.\1.residual.weight"),
)
#: What the network must have been built with: setting -> the only value that ours computes.
_FIXED = {
    "activation": "relu",
    "aggregator": "cnn",
    "log_compression": True,
    "skip_connections_feat": False,
    "skip_connections_agg": True,
    "residual_scale": 0.5,
    "agg_zero_pad": False,
    "non_affine_group_norm": False,
}
_DEFAULTS = {"activation": "relu", "aggregator": "cnn", "agg_zero_pad": False,
             "non_affine_group_norm": False, "skip_connections_feat": False}  # fmt: skip
_PREDICTOR = "wav2vec_predictions.project_to_steps."


def is_wav2vec_v1(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of a wav2vec (or vq-wav2vec) model of fairseq."""
    return any(name.startswith("feature_aggregator.") for name in names)


def read_wav2vec_v1(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], where: str
) -> Stored:
    """The network, and the predictor as the head of the `wav2vec` objective.

    Raises CheckpointError for vq-wav2vec, whose context network reads quantised features, for
    variants that our network does not compute, and for tensors that belong to neither.
    """
    if quantizer := [name for name in tensors if name.startswith("vector_quantizer.")]:
        raise CheckpointError(
            f"{where}: a vq-wav2vec model ({some(quantizer)}): its context network reads quantised "
            "features, which no network here does yet; not supported"
        )
    for key, only in _FIXED.items():
        if (got := settings.get(key, _DEFAULTS.get(key))) != only:
            raise CheckpointError(f"{where}: {key} is {got!r}, expected {only!r}; not supported")
    backbone: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    unknown = []
    for name, value in tensors.items():
        if found := next((re.sub(a, b, name) for a, b in _NAMES if re.fullmatch(a, name)), None):
            backbone[found] = value.float()
        elif name == f"{_PREDICTOR}weight":  # (D, C, 1, K), one matrix per step
            head["predict.weight"] = value.float()[:, :, 0].permute(2, 1, 0).flatten(0, 1)
        elif name == f"{_PREDICTOR}bias":
            head["predict.bias"] = value.float()
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{where}: {len(unknown)} tensors of no wav2vec: {some(unknown)}")
    convs = _layers(settings, "conv_feature_layers", where)
    context = _layers(settings, "conv_aggregator_layers", where)
    if {layer[0] for layer in context} != {context[0][0]} or {layer[2] for layer in context} != {1}:
        raise CheckpointError(
            f"{where}: conv_aggregator_layers {context}: expected one width and strides of 1"
        )
    cfg = BackboneConfig(
        preset="fairseq",
        normalize=bool(settings.get("normalize", False)),
        conv_dims=tuple(layer[0] for layer in convs),
        conv_kernels=tuple(layer[1] for layer in convs),
        conv_strides=tuple(layer[2] for layer in convs),
        conv_bias=False,
        conv_norm="global",
        context="conv",
        context_kernels=tuple(layer[1] for layer in context),
        dim=context[0][0],
        layers=len(context),
        dropout=float(settings.get("dropout", 0.0)),
    )
    options: dict[str, Any] = {}
    if head:
        options["num_steps"] = len(head["predict.weight"]) // cfg.conv_dims[-1]
        options["num_negatives"] = int(settings.get("num_negatives", 10))
        offset = settings.get("offset", "auto")
        options["offset_frames"] = None if offset == "auto" else int(offset)
    return Stored(
        kind="fairseq",
        cfg=cfg,
        backbone=backbone,
        head=head,
        objective="wav2vec" if head else None,
        settings=options,
    )


def _layers(settings: Mapping[str, Any], key: str, where: str) -> list[tuple[int, int, int]]:
    """`[(512, 10, 5), ...]`, which is not evaluated, as (channels, kernel, stride)."""
    text = str(settings.get(key, ""))
    triples = re.findall(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,?\s*\)", text)
    plain = re.sub(r"[\s\d(),\[\]]", "", text)
    if not triples or plain:
        raise CheckpointError(
            f"{where}: {key} is {text!r}, expected [(channels, kernel, stride), ...]"
        )
    return [(int(a), int(b), int(c)) for a, b, c in triples]
