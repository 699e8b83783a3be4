"""BackboneConfig to the keys of a Hugging Face config.json, and back.

Torch-free. Families: Wav2Vec2, Hubert, WavLM and Data2VecAudio. Backbones without a class there
(wav2vec v1, log-mel, those that only look backwards) get a model type of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from speechssl.errors import CheckpointError
from speechssl.models.presets import BackboneConfig

# Ours -> theirs, for the fields that mean the same on both sides.
_SAME = {
    "conv_dims": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "conv_norm": "feat_extract_norm",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "pos_kernel": "num_conv_pos_embeddings",
    "pos_groups": "num_conv_pos_embedding_groups",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "layerdrop": "layerdrop",
    "input_dropout": "feat_proj_dropout",
    "feature_dropout": "feat_quantizer_dropout",
    "activation": "hidden_act",
}
# Their defaults, for config files that leave keys out.
_DEFAULTS: dict[str, Any] = {
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "conv_bias": False,
    "feat_extract_norm": "group",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "layerdrop": 0.1,
    "feat_proj_dropout": 0.0,
    "feat_quantizer_dropout": 0.0,
    "hidden_act": "gelu",
    "do_stable_layer_norm": False,
}
#: Their model types, the prefix of each one's tensors below a head, and of its classes.
FAMILIES = {
    "wav2vec2": ("wav2vec2.", "Wav2Vec2"),
    "hubert": ("hubert.", "Hubert"),
    "wavlm": ("wavlm.", "WavLM"),
    "data2vec-audio": ("data2vec_audio.", "Data2VecAudio"),
    "wav2vec2-conformer": ("wav2vec2_conformer.", "Wav2Vec2Conformer"),
}
#: Keys of one family, as in `_SAME`.
_SAME_IN = {
    "hubert": {"projection_norm": "feat_proj_layer_norm"},
    "wavlm": {"rel_buckets": "num_buckets", "rel_max_distance": "max_bucket_distance"},
    "data2vec-audio": {
        "pos_depth": "num_conv_pos_embeddings",
        "pos_kernel": "conv_pos_kernel_size",
    },
    "wav2vec2-conformer": {
        "block_kernel": "conv_depthwise_kernel_size",
        "block_dropout": "conformer_conv_dropout",
    },
}
_DEFAULTS_IN: dict[str, dict[str, Any]] = {
    "hubert": {"feat_proj_layer_norm": True},
    "wavlm": {"num_buckets": 320, "max_bucket_distance": 800},
    "data2vec-audio": {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19},
    "wav2vec2-conformer": {"conv_depthwise_kernel_size": 31, "conformer_conv_dropout": 0.1},
}
# Parts of their models that ours do not have: key -> the only value we can read.
_FIXED = {
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "add_adapter": False,
    "adapter_attn_dim": None,
}


# Quantizer and contrast of the wav2vec 2.0 objective: ours -> theirs.
_PRETRAINING = {
    "codes": "num_codevectors_per_group",
    "groups": "num_codevector_groups",
    "code_dim": "codevector_dim",
    "final_dim": "proj_codevector_dim",
    "num_negatives": "num_negatives",
    "logit_temperature": "contrastive_logits_temperature",
    "diversity_weight": "diversity_loss_weight",
}


def family(cfg: BackboneConfig) -> str | None:
    """The model type whose class computes this network; None where `transformers` has none.

    A network of wav2vec2 is one of hubert too; it gets the former's name.
    """
    if cfg.context != "transformer" or cfg.conv_norm == "global" or cfg.conv_first != "conv":
        return None
    if cfg.causal:
        return None  # the names of the weights would fit, and its attention would see the future
    positions, conv = cfg.attention_positions, cfg.pos_conv
    if cfg.block == "conformer":
        published = positions != "gated_relative" and conv == "none" and cfg.block_norm == "batch"
        return "wav2vec2-conformer" if published and cfg.projection_norm else None
    if positions == "gated_relative":
        return "wavlm" if conv == "weight_norm" and cfg.projection_norm else None
    if positions != "none" or conv == "none":
        return None
    if conv == "stack":
        norms = (cfg.conv_norm, cfg.norm, cfg.projection_norm)
        return "data2vec-audio" if norms == ("layer", "post", True) else None
    return "wav2vec2" if conv == "weight_norm" and cfg.projection_norm else "hubert"


def computes(cfg: BackboneConfig, other: str) -> bool:
    """Whether the classes of the family `other` compute this network."""
    own = family(cfg)
    return own is not None and (own == other or (own, other) == ("wav2vec2", "hubert"))


def architecture(
    kind: str, cfg: BackboneConfig, objective: str | None, settings: Mapping[str, Any]
) -> str:
    """Their class for a backbone of the family `kind` below the head called `objective`.

    A head they have no counterpart of (None: no head) leaves the bare model.
    """
    stem = FAMILIES[kind][1]
    get = settings.get
    plain = (get("loss", "softmax"), get("pooling", "mean"), get("norm", "none"))
    weighted = get("layers", "weighted") == "weighted"
    if (
        objective == "speaker"
        and plain == ("softmax", "mean", "none")
        and not (weighted and cfg.norm == "pre")
    ):
        return f"{stem}ForSequenceClassification"
    if objective == "wav2vec2" and kind in ("wav2vec2", "wav2vec2-conformer"):
        return f"{stem}ForPreTraining"
    if objective == "ctc" and settings.get("layers", "last") == "last":
        return f"{stem}ForCTC"
    return f"{stem}Model"


def to_hf(
    cfg: BackboneConfig,
    objective: str | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    classes: Sequence[str] = (),
    kind: str | None = None,
) -> dict[str, Any]:
    """The config.json keys for a backbone below the head called `objective` (None = no head).

    `settings` are the objective's own; `classes` its output classes. `kind` is the family to
    write it as (see `computes`), by default `family(cfg)`.
    """
    kind = kind or family(cfg)
    if kind is None:
        other = "wav2vec2-filterbank" if cfg.conv_first == "filterbank" else "wav2vec2-variant"
        other = "wav2vec2-causal" if cfg.causal else other
        ours = {"conv": "wav2vec", "gru": "gru", "none": "logmel"}.get(cfg.context, other)
        return {"model_type": f"speechssl-{ours}", "architectures": []}
    config: dict[str, Any] = {
        "model_type": kind,
        "architectures": [architecture(kind, cfg, objective, settings)],
        "torch_dtype": "float32",
        "do_stable_layer_norm": cfg.norm == "pre",
        "num_feat_extract_layers": len(cfg.conv_dims),
        "initializer_range": 0.02,
        "mask_time_prob": 0.05,  # the mask vector exists there only where this is above zero
        **_FIXED,
    }
    for ours, theirs in (_SAME | _SAME_IN.get(kind, {})).items():
        value = getattr(cfg, ours)
        config[theirs] = list(value) if isinstance(value, tuple) else value
    if kind == "hubert":
        config["conv_pos_batch_norm"] = cfg.pos_conv == "batch_norm"
    if kind == "wav2vec2-conformer":
        positions = cfg.attention_positions
        config["position_embeddings_type"] = None if positions == "none" else positions
    if objective == "wav2vec2":
        config |= _pretraining(settings)
    if config["architectures"][0].endswith("ForSequenceClassification"):
        config |= _classifier(settings, classes)
    if objective == "ctc":
        config |= {
            "vocab_size": len(classes),
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": None,
            "ctc_loss_reduction": "sum",
            "ctc_zero_infinity": True,
            "final_dropout": float(settings.get("final_dropout", 0.0)),
        }
    return config


def _pretraining(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Quantizer and contrast of the wav2vec 2.0 objective under their names."""
    return {name: settings[ours] for ours, name in _PRETRAINING.items() if ours in settings}


def pretraining_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the wav2vec 2.0 objective that a Wav2Vec2ForPreTraining config.json gives.

    Those it leaves out have the same defaults there and here.
    """
    return {ours: config[name] for ours, name in _PRETRAINING.items() if name in config}


def classifier_settings(
    config: Mapping[str, Any], head: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Settings and classes of the speaker objective that a ForSequenceClassification head is.

    None where the head is another one. Their weighted sum of a pre-norm network ends in a state
    without the final norm, which ours has not: such a head cannot be read.
    """
    weighted = bool(config.get("use_weighted_layer_sum", False))
    names = {"projector.weight", "projector.bias", "classifier.weight", "classifier.bias"}
    if head.keys() != names | ({"layer_weights"} if weighted else set()):
        return None
    if weighted and config.get("do_stable_layer_norm", False):
        return None
    width, count = head["projector.weight"].shape[0], head["classifier.weight"].shape[0]
    labels = config.get("id2label") or {}
    classes = tuple(str(labels.get(str(i), f"LABEL_{i}")) for i in range(count))
    if len(set(classes)) != count or count < 2:
        return None
    settings = {"layers": "weighted" if weighted else "last", "proj_dim": width}
    return settings, classes


def _classifier(settings: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Keys of a ForSequenceClassification config for the speaker objective."""
    return {
        "use_weighted_layer_sum": settings.get("layers", "weighted") == "weighted",
        "classifier_proj_size": settings.get("proj_dim", 256),
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }


def from_hf(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str
) -> BackboneConfig:
    """The backbone of a config.json of one of the FAMILIES and its preprocessor_config.json.

    Raises CheckpointError for another model family or a part we have no counterpart of.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{where}: found a model of type '{kind}'; expected a speechssl folder or type "
            f"{', '.join(map(repr, FAMILIES))}"
        )
    for key, only in (_FIXED | {"rotary_embedding_base": 10000}).items():
        if (got := config.get(key, only)) != only:
            raise CheckpointError(f"{where}: {key} is {got!r}, expected {only!r}; not supported")
    if config.get("feat_extract_norm", "group") not in ("group", "layer"):
        raise CheckpointError(
            f"{where}: feat_extract_norm is {config['feat_extract_norm']!r}, "
            "expected 'group' or 'layer'"
        )
    values: dict[str, Any] = {}
    defaults = _DEFAULTS | _DEFAULTS_IN.get(kind, {})
    for ours, theirs in (_SAME | _SAME_IN.get(kind, {})).items():
        value = config.get(theirs, defaults[theirs])
        values[ours] = tuple(value) if isinstance(value, list) else value
    values["norm"] = "pre" if config.get("do_stable_layer_norm", False) else "post"
    if kind == "data2vec-audio":  # has no keys for what is the same in all of them
        values |= {"conv_norm": "layer", "norm": "post", "pos_conv": "stack"}
    if kind == "wavlm":
        values["attention_positions"] = "gated_relative"
    if values["activation"] == "silu":
        values["activation"] = "swish"
    if values["activation"] not in ("gelu", "swish"):
        raise CheckpointError(
            f"{where}: hidden_act is {values['activation']!r}, expected 'gelu' or 'swish'"
        )
    if kind == "wav2vec2-conformer":
        positions = config.get("position_embeddings_type", "relative") or "none"
        if positions not in ("none", "relative", "rotary"):
            raise CheckpointError(
                f"{where}: position_embeddings_type is {positions!r}, expected 'relative', "
                "'rotary' or null"
            )
        values |= {"block": "conformer", "block_norm": "batch", "norm": "pre", "pos_conv": "none"}
        values["attention_positions"] = positions
    if kind == "hubert" and config.get("conv_pos_batch_norm", False):
        values["pos_conv"] = "batch_norm"
    values["rate_hz"] = int(preprocessor.get("sampling_rate", 16000))
    values["normalize"] = bool(preprocessor.get("do_normalize", values["conv_norm"] == "layer"))
    return BackboneConfig(preset="huggingface", **values)


def preprocessor_config(cfg: BackboneConfig) -> dict[str, Any]:
    """preprocessor_config.json: how their feature extractor must treat the waveform.

    The group norm over time there counts padded samples, so it wants no attention mask.
    """
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": cfg.rate_hz,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": cfg.normalize,
        "return_attention_mask": cfg.conv_norm == "layer",
    }


def tokenizer_files(classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """File name -> content for a character vocabulary whose index 0 is the blank."""
    unknown = "<unk>" if "<unk>" in classes else classes[0]
    special = {"pad_token": classes[0], "unk_token": unknown, "bos_token": None, "eos_token": None}
    tokenizer = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "word_delimiter_token": "|",
        "do_lower_case": False,
        "replace_word_delimiter_char": " ",
        **special,
    }
    return {
        "vocab.json": {token: index for index, token in enumerate(classes)},
        "tokenizer_config.json": tokenizer,
        "special_tokens_map.json": {k: v for k, v in special.items() if v is not None},
    }
