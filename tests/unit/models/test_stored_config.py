from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from speechssl.downstream.ctc import CTC
from speechssl.errors import CheckpointError
from speechssl.models.formats.hf_config import family, from_hf, preprocessor_config, to_hf
from speechssl.models.presets import PRESETS, preset
from speechssl.models.stored_config import from_json, to_json
from speechssl.objectives.masking import ChannelMask, SpanMask
from speechssl.objectives.wav2vec2 import Wav2Vec2


@dataclass(frozen=True)
class Inner:
    width: int = 3
    scales: tuple[float, ...] = (1.0, 0.5)


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    name: str = "x"
    limit: int | None = None
    from_: float = 0.0
    spans: tuple[int, ...] = field(default=())


@pytest.mark.parametrize(
    "config",
    [
        Outer(Inner(5, (2.0,)), "y", 4, 1e-5, (1, 2)),
        Outer(),
        CTC.Config(freeze_steps=3, mask=SpanMask(prob=0.5), channel_mask=ChannelMask(prob=0.1)),
        Wav2Vec2.Config(codes=7),
    ],
)
def test_settings_survive_json(config: object):
    stored = json.loads(json.dumps(to_json(config)))
    assert from_json(type(config), stored, "s", "f") == config


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"inner": {"widht": 3}}, r"'s\.inner\.widht'.*s\.inner\.width"),
        ({"name": 3, "inner": {"width": "wide"}}, "wide"),
        ({"limit": [1]}, "limit"),
        ([], "expected a table"),
        (None, "expected a table"),
    ],
)
def test_damaged_settings_are_named(stored: object, message: str):
    with pytest.raises(CheckpointError, match=message):
        from_json(Outer, stored, "s", "config.json")


@pytest.mark.parametrize("name", [n for n in PRESETS if family(preset(n))])
def test_huggingface_keys_carry_the_backbone(name: str):
    cfg = preset(name)
    again = from_hf(to_hf(cfg), preprocessor_config(cfg), "config.json")
    differs = {k for k, v in to_json(cfg).items() if to_json(again)[k] != v}
    assert differs <= {"preset", "feature_grad_mult"}  # what they have no key for


@pytest.mark.parametrize(
    ("key", "value"), [("add_adapter", True), ("hidden_act", "relu"), ("feat_extract_norm", "x")]
)
def test_parts_that_we_lack_are_refused(key: str, value: object):
    config = to_hf(preset("tiny")) | {key: value}
    with pytest.raises(CheckpointError, match=key):
        from_hf(config, {}, "config.json")


def test_keys_left_out_have_their_defaults():
    cfg = from_hf({"model_type": "wav2vec2"}, {}, "config.json")
    base = preset("base")
    assert (cfg.dim, cfg.layers, cfg.conv_dims) == (base.dim, base.layers, base.conv_dims)
    assert (cfg.norm, cfg.conv_norm, cfg.normalize) == ("post", "group", False)
