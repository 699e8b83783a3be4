"""Checkpoint files of fairseq and torchaudio, read without either of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from speechssl.audio.backend import pretrained_network
from speechssl.errors import CheckpointError, ConfigError
from speechssl.models.formats.hf_folder import drawn_mask_vector
from speechssl.models.formats.keymap import layout_of, to_ours
from speechssl.models.formats.stored import Stored
from speechssl.models.formats.wav2vec_v1 import is_wav2vec_v1, read_wav2vec_v1
from speechssl.models.presets import BackboneConfig
from speechssl.models.weights import some
from speechssl.unpickle import Inert, safe_load

#: Packages whose classes fairseq pickles beside the weights; none of their code is needed.
_STORED_BESIDE = ("argparse", "omegaconf", "fairseq", "typing", "enum", "numpy", "examples")
_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # of all published models
_CONV = "feature_extractor.conv_layers."
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # of fairseq's dictionary; its blank comes first


def read_foreign(
    path: str | Path, heads: int | None = None, norm: Literal["pre", "post"] | None = None
) -> Stored:
    """Read a fairseq checkpoint or a torchaudio state dict of the wav2vec 2.0 family.

    `heads` (of attention) and `norm` (`pre`, `post`) are for torchaudio files, which do not tell
    them: by default 64 channels a head, and `pre` where the convolutions have layer norms.
    The characters of a fairseq CTC model come from the dict.ltr.txt beside it.
    Raises CheckpointError when the file cannot be read, would run code, holds a tensor of another
    network, or when its settings and its tensors contradict each other; ConfigError for `heads` or
    `norm` beside a fairseq file.
    """
    path = Path(path)
    content = safe_load(path, "get the model again from somebody you trust", inert=_STORED_BESIDE)
    settings: Mapping[str, Any] = {}
    tensors = content
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        tensors = content["model"]
        settings = _settings(content, path)
    if isinstance(tensors, dict) and isinstance(tensors.get("_ema"), dict):
        tensors = {k: v for k, v in tensors.items() if k != "_ema"}  # data2vec's teacher
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise CheckpointError(f"{path}: holds no table of tensors; expected a state dict")
    if is_wav2vec_v1(tensors):
        if heads is not None or norm is not None:
            raise ConfigError(f"{path}: wav2vec (v1) has no heads and no such norm; leave them out")
        return read_wav2vec_v1(tensors, settings, str(path))
    layout = layout_of(tensors)
    if layout is None:
        raise CheckpointError(
            f"{path}: neither a fairseq nor a torchaudio model of the wav2vec 2.0 family (its "
            f"tensors: {some(tensors)})"
        )
    backbone, head, dropped = to_ours(tensors, layout, str(path))
    backbone = {k: v.float() for k, v in backbone.items()}
    assumed: list[str] = []
    if layout == "fairseq" and not settings:
        raise CheckpointError(
            f"{path}: a fairseq state dict without its settings (cfg or args); give the whole "
            "checkpoint file"
        )
    if layout == "torchaudio":
        cfg = _torchaudio_config(backbone, heads, norm, str(path), assumed)
    elif heads is None and norm is None:
        cfg = _fairseq_config(backbone, settings, str(path))
    else:
        raise ConfigError(f"{path}: a fairseq file tells heads and norm itself; leave them out")
    if "masked_spec_embed" not in backbone:
        backbone["masked_spec_embed"] = drawn_mask_vector(cfg.dim)
        assumed.append("the mask vector is drawn at random: the model has none")
    told = [f"assumed: {line}" for line in assumed]
    name, found, classes = None, {}, ()
    if "quantizer.codevectors" in head:
        name, found = "wav2vec2", _quantizer(head, settings, str(path))
    elif layout == "fairseq" and "lm_head.weight" in head:
        classes = _characters(path, head)
        name = "ctc" if classes else None
    if head and name is None:
        beside = " (no dict.ltr.txt beside the file)" if layout == "fairseq" else ""
        told.append(f"head left out: {some(head)}: its classes are not known{beside}")
        dropped, head = [*dropped, *head], {}
    return Stored(
        kind=layout,
        cfg=cfg,
        backbone=backbone,
        head=head,
        objective=name,
        settings=found,
        classes=classes,
        dropped=tuple(dropped),
        told=tuple(told),
    )


def read_bundle(name: str) -> Stored:
    """A pre-trained model of torchaudio.pipelines, such as WAV2VEC2_BASE.

    Raises CheckpointError where there is none of that name or it cannot be downloaded.
    """
    where = f"torchaudio:{name}"
    try:
        network, normalised, labels = pretrained_network(name)
    except KeyError as error:
        raise CheckpointError(
            f"{where}: torchaudio has no such bundle; expected one of {error.args[0]}"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{where}: cannot be downloaded: {error}; check the network, or copy the file into the "
            "cache of torch.hub (TORCH_HOME)"
        ) from error
    backbone, head, dropped = to_ours(network.state_dict(), "torchaudio", where)
    block: Any = network.encoder.transformer
    # What the tensors do not tell, the modules do.
    heads = int(block.layers[0].attention.num_heads)
    norm = "post" if block.layer_norm_first else "pre"  # the flag is inverted inside
    cfg = _torchaudio_config(backbone, heads, norm, where, [])
    backbone["masked_spec_embed"] = drawn_mask_vector(cfg.dim)
    told = ["the mask vector is drawn at random: the model has none"]
    known = "lm_head.weight" in head and len(labels) == len(head["lm_head.weight"])
    if head and not known:
        told.append(f"head left out: {some(head)}: its classes are not known")
        dropped, head = [*dropped, *head], {}
    return Stored(
        kind="torchaudio",
        cfg=replace(cfg, normalize=normalised),
        backbone=backbone,
        head=head,
        objective="ctc" if head else None,
        classes=labels if head else (),
        dropped=tuple(dropped),
        told=tuple(told),
    )


def _settings(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options of a fairseq model in one table, whether in `cfg` or in the older `args`."""
    stored = _plain(content.get("cfg")) or _plain(content.get("args"))
    if not isinstance(stored, dict):
        return {}
    parts = [stored.get("task"), stored.get("model")] if "model" in stored else [stored]
    found: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, dict):
            found |= part
    inside = found.get("w2v_args")  # a fine-tuned model carries the settings of its start
    if isinstance(inside, dict):
        inner = inside.get("model", inside)
        if not isinstance(inner, dict):
            raise CheckpointError(f"{path}: w2v_args.model is no table of settings")
        found = found | inner
    return found


def _plain(stored: Any) -> Any:
    """Namespaces and OmegaConf nodes as plain tables, lists and values."""
    if isinstance(stored, Inert):
        attributes = vars(stored)
        for inner in ("_content", "_val"):
            if inner in attributes:
                return _plain(attributes[inner])
        arguments = attributes.get("args", ())
        if len(arguments) == 1 and len(attributes) == 1:  # a member of an enumeration
            return _plain(arguments[0])
        return _plain({k: v for k, v in attributes.items() if k != "args"})
    if isinstance(stored, dict):
        return {k: _plain(v) for k, v in stored.items()}
    if isinstance(stored, list | tuple):
        return [_plain(v) for v in stored]
    return stored


def _fairseq_config(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any], where: str
) -> BackboneConfig:
    """The network of these tensors and settings."""
    found = _shapes(weights, where)
    told = {
        "extractor_mode": {"group": "default", "layer": "layer_norm"}[found["conv_norm"]],
        "encoder_layers": found["layers"],
        "encoder_embed_dim": found["dim"],
        "encoder_ffn_embed_dim": found["ffn"],
        "conv_bias": found["conv_bias"],
        "conv_pos": found["pos_kernel"],
        "conv_pos_groups": found["pos_groups"],
    }
    if found["pos_conv"] == "stack":  # conv_pos is divided among them
        del told["conv_pos"]
        told["pos_conv_depth"] = found["pos_depth"]
        kernel = max(3, int(settings.get("conv_pos", 95)) // found["pos_depth"])
        told["conv_pos"] = settings.get("conv_pos") if kernel == found["pos_kernel"] else kernel
    if "rel_buckets" in found:
        told["num_buckets"] = found["rel_buckets"]
        found["rel_max_distance"] = int(settings.get("max_distance", 800))
    for key, value in told.items():
        if str(got := settings.get(key, value)) != str(value):
            raise CheckpointError(
                f"{where}: its settings say {key} {got!r}, its tensors {value!r}; the file was "
                "edited or is a mixture of two models"
            )
    return BackboneConfig(
        preset="fairseq",
        normalize=bool(settings.get("normalize", False)),
        conv_strides=_strides(settings, found, where),
        norm="pre" if settings.get("layer_norm_first", False) else "post",
        heads=int(settings.get("encoder_attention_heads", 12)),
        **found,
    )


def _torchaudio_config(
    weights: Mapping[str, Tensor],
    heads: int | None,
    norm: Literal["pre", "post"] | None,
    where: str,
    assumed: list[str],
) -> BackboneConfig:
    """The network of these tensors. Appends to `assumed` what is a guess."""
    found = _shapes(weights, where)
    if found["conv_kernels"] != _KERNELS:
        raise CheckpointError(
            f"{where}: convolutions with kernels {found['conv_kernels']}; a torchaudio file does "
            f"not tell their strides, which are known for {_KERNELS} alone"
        )
    gates = weights.get("encoder.layers.0.attention.gru_rel_pos_const")
    if gates is not None:
        if heads not in (None, gates.shape[1]):
            raise ConfigError(
                f"{where}: has {gates.shape[1]} attention heads, but heads is {heads}"
            )
        heads = gates.shape[1]
        assumed.append("relative positions tell apart up to 800 frames, as published")
    if heads is None:
        heads = max(int(found["dim"]) // 64, 1)
        assumed.append(f"{heads} attention heads of {found['dim'] // heads} channels (--heads)")
    if norm is None:
        norm = "pre" if found["conv_norm"] == "layer" else "post"
        beside = found["conv_norm"]
        assumed.append(f"{norm}-norm blocks, as published beside {beside} norms (--norm)")
    normalize = found["conv_norm"] == "layer"
    return BackboneConfig(
        preset="torchaudio",
        normalize=normalize,
        conv_strides=_STRIDES,
        norm=norm,
        heads=heads,
        **found,
    )


def _shapes(weights: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The fields of a BackboneConfig that tensors alone tell."""
    convs: list[Tensor] = []
    while (name := f"{_CONV}{len(convs)}.conv.weight") in weights:
        convs.append(weights[name])
    stack = 0
    while f"encoder.pos_conv_embed.layers.{stack}.conv.weight" in weights:
        stack += 1
    kind = "layers.0.conv.weight" if stack else "conv.parametrizations.weight.original1"
    needed = [
        "feature_projection.projection.weight",
        f"encoder.pos_conv_embed.{kind}",
        "encoder.layers.0.feed_forward.intermediate_dense.weight",
    ]
    if missing := [n for n in needed if n not in weights] + ([] if convs else [_CONV]):
        raise CheckpointError(f"{where}: no {missing[0]}; not a network of the wav2vec 2.0 family")
    projection, position, hidden = (weights[name] for name in needed)
    dim = projection.shape[0]
    norms = [f"{_CONV}{i}.layer_norm.weight" in weights for i in range(len(convs))]
    if norms not in ([True] * len(convs), [True] + [False] * (len(convs) - 1)):
        raise CheckpointError(f"{where}: norms stand after convolutions {norms}; not supported")
    found = {
        "conv_dims": tuple(w.shape[0] for w in convs),
        "conv_kernels": tuple(w.shape[2] for w in convs),
        "conv_bias": f"{_CONV}0.conv.bias" in weights,
        "conv_norm": "layer" if all(norms) and len(norms) > 1 else "group",
        "dim": dim,
        "layers": 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("encoder.layers.")),
        "ffn": hidden.shape[0],
        "pos_kernel": position.shape[2],
        "pos_groups": dim // position.shape[1],
        "pos_conv": "stack" if stack else "weight_norm",
        "pos_depth": stack or 1,
    }
    table = weights.get("encoder.layers.0.attention.rel_attn_embed.weight")
    if table is not None:
        found |= {"attention_positions": "gated_relative", "rel_buckets": table.shape[0]}
    return found


def _strides(settings: Mapping[str, Any], found: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """Strides out of fairseq's `[(512,10,5)] + [(512,3,2)] * 4 + ...`, which is not evaluated."""
    text = str(settings.get("conv_feature_layers", ""))
    layers: list[tuple[int, ...]] = []
    for body, times in re.findall(r"\[([^\]]*)\]\s*(?:\*\s*(\d+))?", text):
        triples = re.findall(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,?\s*\)", body)
        layers += [tuple(map(int, layer)) for layer in triples] * int(times or 1)
    shapes = list(zip(found["conv_dims"], found["conv_kernels"], strict=True))
    if [layer[:2] for layer in layers] != shapes:
        raise CheckpointError(
            f"{where}: conv_feature_layers {text!r} does not describe its convolutions, which have "
            f"(channels, kernel) {shapes}"
        )
    return tuple(layer[2] for layer in layers)


def _quantizer(head: dict[str, Tensor], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings of `Wav2Vec2` for the quantizer and contrast of a fairseq pre-training model."""
    groups = int(settings.get("latent_groups", 2))
    codes, part = head["quantizer.codevectors"].shape[1:]
    if codes % groups or "project_q.weight" not in head or "project_hid.weight" not in head:
        raise CheckpointError(
            f"{where}: a quantizer of {codes} vectors in {groups} groups, beside "
            f"{', '.join(sorted(head))}; expected project_q and final_proj, and groups of one size"
        )
    found: dict[str, Any] = {"groups": groups, "codes": codes // groups, "code_dim": part * groups}
    found["final_dim"] = head["project_q.weight"].shape[0]
    for ours, theirs in (("num_negatives", "num_negatives"), ("logit_temperature", "logit_temp")):
        if theirs in settings:
            found[ours] = settings[theirs]
    return found


def _characters(path: Path, head: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Classes of a fairseq CTC model; its blank, `<s>` at index 0, is called `<pad>` here."""
    file = path.with_name("dict.ltr.txt")
    if not file.is_file():
        return ()
    lines = file.read_text(encoding="utf-8").splitlines()
    classes = (*_SPECIAL, *(line.split()[0] for line in lines if line.strip()))
    if len(classes) != len(head["lm_head.weight"]):
        raise CheckpointError(
            f"{file}: {len(classes)} symbols with the four special ones, but the model has "
            f"{len(head['lm_head.weight'])} classes; it is the dictionary of another model"
        )
    return classes
