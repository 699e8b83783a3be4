"""BackboneConfig to the keys of a Hugging Face Wav2Vec2 config.json, and back from Hubert's too.

Torch-free. Backbones without a class there (wav2vec v1, log-mel) get a model type of ours.
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
    "do_stable_layer_norm": False,
}
# Their model types that compute our network, and the prefix of its tensors below a head.
FAMILIES = {"wav2vec2": "wav2vec2.", "hubert": "hubert."}
# Parts of their model that ours does not have: key -> the only value we can read.
_HUBERT_FIXED = {"feat_proj_layer_norm": True, "conv_pos_batch_norm": False}
_FIXED = {
    "hidden_act": "gelu",
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


def has_hf_class(cfg: BackboneConfig) -> bool:
    """Whether `transformers` has a class that computes the same network."""
    plain = cfg.conv_norm in ("group", "layer") and cfg.conv_first == "conv"
    return cfg.context == "transformer" and plain


def architecture(objective: str | None, settings: Mapping[str, Any]) -> str:
    """Their class for a backbone below the head called `objective` (None = no head).

    A head they have no counterpart of leaves the bare Wav2Vec2Model.
    """
    if objective == "wav2vec2":
        return "Wav2Vec2ForPreTraining"
    if objective == "ctc" and settings.get("layers", "last") == "last":
        return "Wav2Vec2ForCTC"
    return "Wav2Vec2Model"


def to_hf(
    cfg: BackboneConfig,
    objective: str | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """The config.json keys for a backbone below the head called `objective` (None = no head).

    `settings` are the objective's own; `classes` its output classes.
    """
    if not has_hf_class(cfg):
        other = "wav2vec2-filterbank" if cfg.conv_first == "filterbank" else "wav2vec2-global-norm"
        kind = {"conv": "wav2vec", "none": "logmel"}.get(cfg.context, other)
        return {"model_type": f"speechssl-{kind}", "architectures": []}
    config: dict[str, Any] = {
        "model_type": "wav2vec2",
        "architectures": [architecture(objective, settings)],
        "torch_dtype": "float32",
        "do_stable_layer_norm": cfg.norm == "pre",
        "num_feat_extract_layers": len(cfg.conv_dims),
        "initializer_range": 0.02,
        "mask_time_prob": 0.05,  # the mask vector exists there only where this is above zero
        **_FIXED,
    }
    for ours, theirs in _SAME.items():
        value = getattr(cfg, ours)
        config[theirs] = list(value) if isinstance(value, tuple) else value
    if objective == "wav2vec2":
        config |= _pretraining(settings)
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


def from_hf(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str
) -> BackboneConfig:
    """The backbone of a Wav2Vec2 or Hubert config.json and its preprocessor_config.json.

    Raises CheckpointError for another model family or a part we have no counterpart of.
    """
    if config.get("model_type") not in FAMILIES:
        raise CheckpointError(
            f"{where}: found a model of type '{config.get('model_type')}'; expected a speechssl "
            f"folder or type {' or '.join(map(repr, FAMILIES))} (others cannot be read yet)"
        )
    fixed = _FIXED | (_HUBERT_FIXED if config["model_type"] == "hubert" else {})
    for key, only in fixed.items():
        if (got := config.get(key, only)) != only:
            raise CheckpointError(f"{where}: {key} is {got!r}, expected {only!r}; not supported")
    if config.get("feat_extract_norm", "group") not in ("group", "layer"):
        raise CheckpointError(
            f"{where}: feat_extract_norm is {config['feat_extract_norm']!r}, "
            "expected 'group' or 'layer'"
        )
    values: dict[str, Any] = {}
    for ours, theirs in _SAME.items():
        value = config.get(theirs, _DEFAULTS[theirs])
        values[ours] = tuple(value) if isinstance(value, list) else value
    values["norm"] = "pre" if config.get("do_stable_layer_norm", False) else "post"
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
