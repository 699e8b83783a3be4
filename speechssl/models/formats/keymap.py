"""Names of tensors: ours, which are Hugging Face's, and those of fairseq and torchaudio.

Source: the modules of fairseq 0.12 (wav2vec2.py, wav2vec2_asr.py, data2vec_audio.py), of WavLM's
release (WavLM.py) and of torchaudio 2.11 (models/wav2vec2/components.py, wavlm_attention.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from speechssl.errors import CheckpointError

Layout = Literal["fairseq", "torchaudio"]
LAYOUTS: tuple[Layout, ...] = ("fairseq", "torchaudio")

_HOLES = {"{i}": r"(\d+)", "{p}": r"([qkv]|out)", "{x}": r"(weight|bias)"}
_CONV = "feature_extractor.conv_layers."
_WEIGHT_NORM = "encoder.pos_conv_embed.conv.parametrizations.weight."
#: Theirs, ours; {i} a number, {p} one of q k v out, {x} weight or bias.
_TABLES: dict[Layout, tuple[tuple[str, str], ...]] = {
    "fairseq": (
        (_CONV + "{i}.0.{x}", _CONV + "{i}.conv.{x}"),
        # A layer norm stands between two transposes; the group norm of layer 0 does not.
        (_CONV + "{i}.2.1.{x}", _CONV + "{i}.layer_norm.{x}"),
        (_CONV + "{i}.2.{x}", _CONV + "{i}.layer_norm.{x}"),
        ("layer_norm.{x}", "feature_projection.layer_norm.{x}"),
        ("post_extract_proj.{x}", "feature_projection.projection.{x}"),
        ("encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"),
        ("encoder.pos_conv.0.weight_g", _WEIGHT_NORM + "original0"),
        ("encoder.pos_conv.0.weight_v", _WEIGHT_NORM + "original1"),
        ("encoder.pos_conv.{i}.0.{x}", "encoder.pos_conv_embed.layers.{i}.conv.{x}"),
        ("encoder.layer_norm.{x}", "encoder.layer_norm.{x}"),
        *(
            (f"encoder.layers.{{i}}.self_attn.{theirs}", f"encoder.layers.{{i}}.attention.{ours}")
            for theirs, ours in (
                ("grep_linear.{x}", "gru_rel_pos_linear.{x}"),
                ("grep_a", "gru_rel_pos_const"),
                ("relative_attention_bias.weight", "rel_attn_embed.weight"),
            )
        ),
        ("encoder.layers.{i}.self_attn.{p}_proj.{x}", "encoder.layers.{i}.attention.{p}_proj.{x}"),
        ("encoder.layers.{i}.self_attn_layer_norm.{x}", "encoder.layers.{i}.layer_norm.{x}"),
        ("encoder.layers.{i}.fc1.{x}", "encoder.layers.{i}.feed_forward.intermediate_dense.{x}"),
        ("encoder.layers.{i}.fc2.{x}", "encoder.layers.{i}.feed_forward.output_dense.{x}"),
        ("encoder.layers.{i}.final_layer_norm.{x}", "encoder.layers.{i}.final_layer_norm.{x}"),
        ("mask_emb", "masked_spec_embed"),
    ),
    "torchaudio": (
        (_CONV + "{i}.conv.{x}", _CONV + "{i}.conv.{x}"),
        (_CONV + "{i}.layer_norm.{x}", _CONV + "{i}.layer_norm.{x}"),
        ("encoder.feature_projection.layer_norm.{x}", "feature_projection.layer_norm.{x}"),
        ("encoder.feature_projection.projection.{x}", "feature_projection.projection.{x}"),
        ("encoder.transformer.pos_conv_embed.conv.bias", "encoder.pos_conv_embed.conv.bias"),
        *(
            (f"encoder.transformer.pos_conv_embed.conv.{theirs}{i}", f"{_WEIGHT_NORM}original{i}")
            for theirs in ("parametrizations.weight.original",)
            for i in (0, 1)
        ),
        ("encoder.transformer.pos_conv_embed.conv.weight_g", _WEIGHT_NORM + "original0"),
        ("encoder.transformer.pos_conv_embed.conv.weight_v", _WEIGHT_NORM + "original1"),
        ("encoder.transformer.layer_norm.{x}", "encoder.layer_norm.{x}"),
        *(
            (
                f"encoder.transformer.layers.{{i}}.attention.{n}",
                f"encoder.layers.{{i}}.attention.{n}",
            )
            for n in (
                "{p}_proj.{x}",
                "gru_rel_pos_linear.{x}",
                "gru_rel_pos_const",
                "rel_attn_embed.weight",
            )
        ),
        ("encoder.transformer.layers.{i}.layer_norm.{x}", "encoder.layers.{i}.layer_norm.{x}"),
        (
            "encoder.transformer.layers.{i}.feed_forward.intermediate_dense.{x}",
            "encoder.layers.{i}.feed_forward.intermediate_dense.{x}",
        ),
        (
            "encoder.transformer.layers.{i}.feed_forward.output_dense.{x}",
            "encoder.layers.{i}.feed_forward.output_dense.{x}",
        ),
        (
            "encoder.transformer.layers.{i}.final_layer_norm.{x}",
            "encoder.layers.{i}.final_layer_norm.{x}",
        ),
        ("mask_generator.mask_embedding", "masked_spec_embed"),
    ),
}
#: Heads, read where the model has them: theirs, ours.
_HEADS: dict[Layout, tuple[tuple[str, str], ...]] = {
    "fairseq": (
        ("proj.{x}", "lm_head.{x}"),
        ("quantizer.vars", "quantizer.codevectors"),
        ("quantizer.weight_proj.{x}", "quantizer.weight_proj.{x}"),
        ("project_q.{x}", "project_q.{x}"),
        ("final_proj.{x}", "project_hid.{x}"),
    ),
    "torchaudio": (("aux.{x}", "lm_head.{x}"),),
}
#: What no network of ours has a use for, by what its name begins with.
_DROPPED: dict[Layout, tuple[str, ...]] = {
    "fairseq": ("_ema.", "label_embs_concat", "target_glu."),
    "torchaudio": ("logit_generator.",),
}
#: What fairseq's fine-tuned models and torchaudio's pre-training models put around the network.
_WRAPPERS: dict[Layout, tuple[str, ...]] = {
    "fairseq": ("w2v_encoder.w2v_model.", "w2v_encoder."),
    "torchaudio": ("wav2vec2.",),
}


def layout_of(names: Iterable[str]) -> Layout | None:
    """Whose names these are, told by the parts that only one of them has."""
    for name in names:
        if "post_extract_proj." in name or ".self_attn." in name:
            return "fairseq"
        if "encoder.transformer." in name or "encoder.feature_projection." in name:
            return "torchaudio"
    return None


def to_ours(
    weights: Mapping[str, Tensor], layout: Layout, where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """(backbone, head, names left out on purpose): the tensors under our names.

    Raises CheckpointError for a tensor that none of the tables knows.
    """
    backbone: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    dropped, unknown = [], []
    # What is called final_proj predicts labels (HuBERT) or a teacher (data2vec) in some of them.
    other = any(n.endswith("label_embs_concat") or ".pos_conv.1." in n for n in weights)
    if layout == "torchaudio":
        weights = _apart(weights)
    for name, value in weights.items():
        bare = name
        for wrapper in _WRAPPERS[layout]:
            if name.startswith(wrapper):
                bare = name.removeprefix(wrapper)
                break
        if found := _renamed(bare, _TABLES[layout]):
            backbone[found] = value
        elif bare.startswith(_DROPPED[layout]) or (other and bare.startswith("final_proj.")):
            dropped.append(name)
        elif found := _renamed(bare, _HEADS[layout]):
            head[found] = value
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{where}: {len(unknown)} of {len(weights)} tensors belong to no {layout} network that "
            f"can be read: {', '.join(sorted(unknown)[:5])}{' ...' if len(unknown) > 5 else ''}"
        )
    return backbone, head, dropped


def from_ours(
    weights: Mapping[str, Tensor], layout: Layout, *, conv_norm: str = "group"
) -> dict[str, Tensor]:
    """A backbone's (and CTC head's) tensors under their names; undoes `to_ours`.

    The mask vector is left out for torchaudio, whose networks do not have one.
    """
    table = [(ours, theirs) for theirs, ours in _TABLES[layout] + _HEADS[layout]]
    if layout == "fairseq":
        other = _CONV + ("{i}.2.{x}" if conv_norm == "layer" else "{i}.2.1.{x}")
        table = [pair for pair in table if pair[1] != other]
    found = {}
    for name, value in weights.items():
        renamed = _renamed(name, table)
        if renamed is None:
            raise CheckpointError(f"{name}: {layout} has no place for this tensor")
        if not renamed.startswith("mask_generator."):
            found[renamed] = value
    gated = any(name.endswith(".gru_rel_pos_const") for name in found)
    return _together(found) if gated and layout == "torchaudio" else found


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The joint projections of torchaudio's WavLM as three, under the names of its wav2vec 2.0."""
    found = {}
    for name, value in weights.items():
        stem, joint, last = name.rpartition(".attention.attention.in_proj_")
        if joint:
            for part, tensor in zip("qkv", value.chunk(3), strict=True):
                found[f"{stem}.attention.{part}_proj.{last}"] = tensor.clone()
        else:
            found[name.replace(".attention.attention.", ".attention.")] = value
    return found


def _together(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undoes `_apart`."""
    found = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"(.+\.attention\.)([qkv])_proj\.(weight|bias)", name):
            stem, part, last = match.groups()
            if part == "q":
                parts = [weights[f"{stem}{p}_proj.{last}"] for p in "qkv"]
                found[f"{stem}attention.in_proj_{last}"] = torch.cat(parts)
        else:
            found[name.replace(".attention.out_proj.", ".attention.attention.out_proj.")] = value
    return found


def _renamed(name: str, table: Iterable[tuple[str, str]]) -> str | None:
    for source, target in table:
        pattern = re.escape(source)
        for hole, what in _HOLES.items():
            pattern = pattern.replace(re.escape(hole), what)
        if match := re.fullmatch(pattern, name):
            for group in match.groups():  # the holes stand in the same order on both sides
                target = re.sub(r"\{[ipx]\}", group, target, count=1)
            return target
    return None
