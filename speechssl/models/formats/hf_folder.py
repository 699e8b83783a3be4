"""Folders that `transformers` wrote, read without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import CheckpointError
from speechssl.models.folder import read_json, read_weights
from speechssl.models.formats import hf_config
from speechssl.models.formats.hf_names import within
from speechssl.models.formats.stored import Stored
from speechssl.models.presets import BackboneConfig
from speechssl.models.weights import some

#: Parts that their classes put around the network, by what the names begin with.
_HEADS = (
    "lm_head.", "quantizer.", "project_q.", "project_hid.", "projector.", "classifier.",
    "layer_weights", "tdnn.", "feature_extractor.", "objective.",
)  # fmt: skip
_OLD_NORM = (("weight_g", "original0"), ("weight_v", "original1"))
#: Names of theirs that mean what ours mean.
_TOKENS = {"[PAD]": "<pad>", "[UNK]": "<unk>"}


def hf_backbone(folder: Path, config: Mapping[str, Any]) -> BackboneConfig:
    """The network that a plain Hugging Face folder describes."""
    optional = (folder / "preprocessor_config.json").exists()
    preprocessor = read_json(folder, "preprocessor_config.json") if optional else {}
    return hf_config.from_hf(config, preprocessor, str(folder / "config.json"))


def read_hf_folder(folder: Path, config: Mapping[str, Any]) -> Stored:
    """Backbone and, where it is one of ours, head of a folder with this config.json.

    Heads: CTC (with its vocab.json), wav2vec 2.0 pre-training, sequence classification.
    Raises CheckpointError for another family, damaged files, or tensors of neither network nor
    head.
    """
    cfg = hf_backbone(folder, config)
    kind = str(config["model_type"])
    prefix = hf_config.FAMILIES[kind][0]
    tensors = read_weights(folder)
    wrapped = any(name.startswith(prefix) for name in tensors)
    backbone: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    strange, unused = [], []
    for name, value in tensors.items():
        if not wrapped or name.startswith(prefix):
            own = within(_new_norm(name.removeprefix(prefix)), kind)
            if own is None:
                unused.append(name)
            else:
                backbone[own] = value
        elif name.startswith(_HEADS):
            head[name] = value
        else:
            strange.append(name)
    if strange:
        raise CheckpointError(
            f"{folder}: {len(strange)} tensors belong to no head that is known: {some(strange)}"
        )
    told = [f"left out, for their own class never uses it: {some(unused)}"] if unused else []
    if "masked_spec_embed" not in backbone:
        # It exists only where their masking options ask for it.
        backbone["masked_spec_embed"] = drawn_mask_vector(cfg.dim)
        told.append("the mask vector is drawn at random: the model has none")
    name, settings, classes = None, {}, ()
    if "quantizer.codevectors" in head:
        name, settings = "wav2vec2", hf_config.pretraining_settings(config)
    elif "lm_head.weight" in head and (characters := vocabulary(folder, config)):
        name = "ctc"
        order, classes = characters
        head = {key: value[order] for key, value in head.items()}
    elif (found := hf_config.classifier_settings(config, head)) is not None:
        name, (settings, classes) = "speaker", found
    if name is None and head:
        parts = sorted({key.split(".")[0] for key in head})
        told.append(f"head left out: {', '.join(parts)}: {_why_left_out(head)}")
    return Stored(
        kind=kind,
        cfg=cfg,
        backbone=backbone,
        head=head if name else {},
        objective=name,
        settings=settings,
        classes=classes,
        dropped=(*unused, *(() if name else head)),
        told=tuple(told),
    )


def drawn_mask_vector(dim: int) -> Tensor:
    """A mask vector (D,) for a network that has none, always the same."""
    return torch.rand(dim, generator=torch.Generator().manual_seed(1))


def vocabulary(folder: Path, config: Mapping[str, Any]) -> tuple[list[int], tuple[str, ...]] | None:
    """Rows of a CTC head in our order, blank first, and their characters; None without a vocab.

    Raises CheckpointError when vocab.json does not number the tokens from 0.
    """
    if not (folder / "vocab.json").exists():
        return None
    index = read_json(folder, "vocab.json")
    tokens = sorted(index, key=lambda token: index[token])
    if [index[token] for token in tokens] != list(range(len(tokens))):
        raise CheckpointError(
            f"{folder / 'vocab.json'}: expected tokens numbered from 0, each once"
        )
    blank = config.get("pad_token_id", 0)
    if not isinstance(blank, int) or not 0 <= blank < len(tokens):
        raise CheckpointError(
            f"{folder / 'config.json'}: pad_token_id (the CTC blank) is {blank!r}, expected 0 to "
            f"{len(tokens) - 1}"
        )
    optional = (folder / "tokenizer_config.json").exists()
    about = read_json(folder, "tokenizer_config.json") if optional else {}
    renamed = _TOKENS | {about.get("word_delimiter_token") or "|": "|", tokens[blank]: "<pad>"}
    order = [blank, *(i for i in range(len(tokens)) if i != blank)]
    return order, tuple(renamed.get(tokens[i], tokens[i]) for i in order)


def _new_norm(name: str) -> str:
    """The name a weight-normed convolution has since torch 2."""
    for old, new in _OLD_NORM:
        name = re.sub(rf"\.conv\.{old}$", rf".conv.parametrizations.weight.{new}", name)
    return name


def _why_left_out(head: Mapping[str, Tensor]) -> str:
    if "lm_head.weight" in head:
        return "there is no vocab.json"
    return "there is no objective of ours like it"
