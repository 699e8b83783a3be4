"""The objectives learn on real human speech: minutes of audio, hundreds of updates, one core.

Scored on speakers that were not trained on. Thresholds stand between chance and what the first
calibrated run gave, so that they catch an objective that does not learn, and nothing else.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.data.config import DataConfig
from speechssl.data.labels import FrameLabels
from speechssl.data.loader import EvalData, TrainData
from speechssl.data.readers import gather
from speechssl.data.skips import Skips
from speechssl.engine.config import EngineConfig, OptimConfig
from speechssl.engine.plain import PlainEngine
from speechssl.extract.frames import MfccFrames
from speechssl.extract.kmeans import fit
from speechssl.extract.labels import label_utterances
from speechssl.models.backbone import build_backbone
from speechssl.models.presets import preset
from speechssl.objectives.apc import APC
from speechssl.objectives.base import Objective
from speechssl.objectives.bestrq import BestRQ
from speechssl.objectives.context_teacher import Decay
from speechssl.objectives.data2vec import Data2Vec
from speechssl.objectives.dinosr import DinoSR
from speechssl.objectives.hubert import Hubert
from speechssl.objectives.masking import SpanMask
from speechssl.objectives.simclr import SimCLR
from speechssl.objectives.tera import Tera
from speechssl.objectives.w2vbert import W2vBert
from speechssl.objectives.wav2vec import Wav2Vec
from speechssl.objectives.wav2vec2 import Wav2Vec2
from speechssl.objectives.wavlm import WavLM
from speechssl.types import Progress, Utterance

pytestmark = pytest.mark.slow
DATA = DataConfig(max_sec=3.0, update_sec=8.0, batch_sec=8.0, workers=0)


def learn(
    objective: Objective, optim: OptimConfig, corpus: Path, config: DataConfig = DATA
) -> dict[str, float]:
    """Train on the train part of a corpus and return the scores on its dev speakers."""
    return learn_from(objective, optim, parts_of(corpus), config)


def parts_of(corpus: Path) -> dict[str, list[Utterance]]:
    """The utterances of train and dev."""
    utterances, _ = gather(corpus / "manifest.jsonl")
    return {s: [u for u in utterances if u.extra["split"] == s] for s in ("train", "dev")}


def learn_from(
    objective: Objective,
    optim: OptimConfig,
    parts: dict[str, list[Utterance]],
    config: DataConfig,
    **targets: Any,
) -> dict[str, float]:
    """Train on `parts["train"]` and return the scores on some of `parts["dev"]`."""
    geometry, plan = objective.backbone.geometry, objective.plan_fn()
    data = TrainData(parts["train"], geometry, config, plan, **targets)
    valid = EvalData(parts["dev"][:40], geometry, config, plan, **targets)
    progress = Progress(max_steps=optim.steps)
    engine = PlainEngine(objective, optim, EngineConfig(), torch.device("cpu"), progress)
    updates = data.updates()
    for _ in range(optim.steps):
        assert engine.step(next(updates)).finite
    return engine.evaluate(valid.batches())


def test_wav2vec2_learns(real_speech: Path):
    objective = Wav2Vec2(
        build_backbone(preset("tiny", layers=2)),
        Wav2Vec2.Config(
            mask=SpanMask(0.5, 5), penalty_weight=0.0, code_init_std=0.15, temperature_start=1.0
        ),
    )
    optim = OptimConfig(lr=2e-3, steps=600, warmup_steps=30, clip_norm=10.0)
    scores = learn(objective, optim, real_speech / "so762")
    assert scores["accuracy"] > 10 / 101  # ten times chance; 0.114 when calibrated
    assert scores["contrastive"] < math.log(101) - 0.5
    assert scores["code_ppl"] > 0.08 * 640  # 68.7 when calibrated
    assert scores["neg_is_pos"] < 0.15  # not by making all targets equal


def test_wav2vec_learns(real_speech: Path):
    objective = Wav2Vec(build_backbone(preset("wav2vec-tiny")), Wav2Vec.Config())
    optim = OptimConfig(lr=1e-3, steps=150, warmup_steps=10, clip_norm=10.0)
    scores = learn(objective, optim, real_speech / "so762")
    # One constant score for everything costs 3.351 nats per positive and wins 1 time in 11.
    assert scores["contrastive"] < 0.95 * objective.chance()["contrastive"]
    assert scores["accuracy"] > 1.6 / 11  # 0.175 when calibrated: 150 small updates are few


def test_bestrq_learns(real_speech: Path):
    # 50 frames a second: of longer frames a larger share is silence, which is one code.
    strides = {"conv_kernels": (400, 2, 1), "conv_strides": (160, 2, 1)}
    objective = BestRQ(
        build_backbone(preset("filterbank-tiny", layers=2, **strides)),
        BestRQ.Config(mask=SpanMask(0.5, 5), codebooks=2, codes=256),
    )
    optim = OptimConfig(lr=2e-3, steps=150, warmup_steps=15, clip_norm=10.0)
    scores = learn(objective, optim, real_speech / "so762")
    # Chance among the codes says little: always naming the commonest is right this often.
    assert scores["accuracy"] > 1.3 * scores["top_code_share"]  # 0.194 to 0.126 when calibrated
    # Knowing how often each code occurs costs the entropy, 3.90; 3.75 when calibrated.
    assert scores["masked_loss"] < math.log(scores["code_ppl"]) - 0.05
    assert scores["code_ppl"] > 0.1 * 256


def test_simclr_learns(real_speech: Path):
    config = DataConfig(max_sec=3.0, update_sec=48.0, batch_sec=48.0, workers=0)
    scores = []
    # Untrained weights know a voice's spectrum already.
    for steps, rate in ((1, 1e-9), (40, 5e-4)):
        torch.manual_seed(1)
        backbone = build_backbone(preset("filterbank-tiny", layers=2, feature_grad_mult=0.0))
        objective = SimCLR(backbone, SimCLR.Config(view_frames=20, projector=(64,)))
        optim = OptimConfig(lr=rate, steps=steps, warmup_steps=0, clip_norm=5.0, weight_decay=0.0)
        scores.append(learn(objective, optim, real_speech / "so762", config))
    before, after = scores
    assert before["contrastive"] < before["collapsed_loss"]  # 2.80 and 3.25
    assert after["contrastive"] < before["contrastive"] - 0.2  # 2.43 when calibrated
    # An utterance's segments draw together, those of others apart: 0.277 and 0.115 when calibrated.
    apart = [one["sibling_cos"] - one["other_cos"] for one in scores]
    assert apart[1] > 1.5 * apart[0]


@pytest.fixture(scope="module")
def clustered(
    real_speech: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Utterance]]:
    """Utterances of train and dev, their frames named by 20 clusters of MFCCs of train."""
    folder = tmp_path_factory.mktemp("clustered")
    parts, source, skips = parts_of(real_speech / "so762"), MfccFrames("mean"), Skips()
    kmeans = fit(
        source,
        parts["train"],
        20,
        max_frames=50_000,
        seed=1,
        on_error=lambda one, error: skips.add("unreadable", one.id, str(error)),
    )
    for split, rows in parts.items():
        parts[split] = label_utterances(folder / split, rows[:200], kmeans, source, skips)
    assert not skips.total
    return parts


def test_hubert_learns(clustered: dict[str, list[Utterance]]):
    backbone = build_backbone(preset("filterbank-tiny", layers=2))
    labels = FrameLabels([*clustered["train"], *clustered["dev"]], backbone.geometry)
    objective = Hubert(
        backbone,
        # Spans of 80 ms: longer ones take thousands of updates to look into.
        Hubert.Config(mask=SpanMask(0.5, 2), head="linear", temperature=1.0, penalty_weight=0.0),
        labels.facts.names,
    )
    optim = OptimConfig(lr=2e-3, steps=250, warmup_steps=30, clip_norm=10.0)
    scores = learn_from(objective, optim, clustered, DATA, labels=labels)
    # Chance among the clusters says little: always naming the commonest is right this often.
    assert scores["accuracy"] > 1.3 * scores["top_code_share"]
    assert scores["masked_loss"] < math.log(scores["code_ppl"]) - 0.05


def test_wavlm_learns(clustered: dict[str, list[Utterance]]):
    backbone = build_backbone(
        preset("filterbank-tiny", layers=2, attention_positions="gated_relative")
    )
    labels = FrameLabels([*clustered["train"], *clustered["dev"]], backbone.geometry)
    mask = SpanMask(0.5, 2)  # 80 ms, as for HuBERT
    objective = WavLM(
        backbone,
        WavLM.Config(mask=mask, head="linear", temperature=1.0, penalty_weight=0.0),
        labels.facts.names,
    )
    optim = OptimConfig(lr=2e-3, steps=250, warmup_steps=30, clip_norm=10.0)
    scores = learn_from(objective, optim, clustered, DATA, labels=labels)
    # 0.152 to 0.109 when calibrated; HuBERT, trained on clean speech as is judged here, 0.162.
    assert scores["accuracy"] > 1.25 * scores["top_code_share"]
    # 2.59 when calibrated; knowing how often each code occurs costs 2.93.
    assert scores["masked_loss"] < math.log(scores["code_ppl"]) - 0.15


def test_data2vec_learns(real_speech: Path):
    objective = Data2Vec(
        build_backbone(preset("filterbank-tiny", layers=3)),
        Data2Vec.Config(
            mask=SpanMask(0.5, 2, 1), top_layers=2, ema=Decay(start=0.99, end=0.999, steps=120)
        ),
    )
    optim = OptimConfig(lr=1e-3, steps=120, warmup_steps=15, clip_norm=10.0)
    scores = learn(objective, optim, real_speech / "so762")
    # Against predicting zero, the mean of every channel: -0.64 before, 0.38 when calibrated.
    assert scores["explained"] > 0.25
    assert scores["target_var"] > 0.25  # 0.73 when calibrated: not by making all targets equal
    assert scores["pred_var"] > 0.1  # 0.45 when calibrated


def test_dinosr_learns(real_speech: Path):
    objective = DinoSR(
        build_backbone(preset("filterbank-tiny", layers=3)),
        DinoSR.Config(
            mask=SpanMask(0.5, 2, 1),
            top_layers=2,
            codes=32,
            ema=Decay(start=0.99, end=0.999, steps=120),
        ),
    )
    optim = OptimConfig(lr=1e-3, steps=120, warmup_steps=15, clip_norm=10.0)
    scores = learn(objective, optim, real_speech / "so762")
    assert scores["target_ppl"] > 3  # 5.1 when calibrated: few updates leave most codes unused
    assert scores["accuracy"] > 1.3 * scores["top_code_share"]  # 0.64 to 0.30
    assert scores["known_nats"] > 0.2  # 0.47; nothing is known where all have one code


def test_apc_learns(real_speech: Path):
    backbone = build_backbone(preset("filterbank-tiny", context="gru", layers=2))
    objective = APC(backbone, APC.Config())
    optim = OptimConfig(lr=2e-3, steps=150, warmup_steps=15, clip_norm=5.0)
    scores = learn(objective, optim, real_speech / "so762")
    assert scores["to_copy"] < 0.95  # 0.86 when calibrated
    assert scores["to_linear"] < 1  # 0.963: better than any multiple of what is heard now
    assert scores["l1"] > scores["neighbour_l1"]  # 0.65 and 0.55: the future does not leak in


def test_w2vbert_learns(real_speech: Path):
    sizes = {"layers": 2, "dim": 128, "ffn": 512, "block": "conformer"}
    objective = W2vBert(
        build_backbone(preset("filterbank-tiny", **sizes)),
        W2vBert.Config(
            mask=SpanMask(0.5, 2),
            final_dim=256,
            codes=160,
            code_dim=256,
            code_init_std=0.15,
            temperature_start=1.0,
            diversity_weight=0.3,  # at 0.1 one code takes a quarter of all frames
        ),
    )
    optim = OptimConfig(lr=2e-3, steps=400, warmup_steps=30, clip_norm=10.0)
    scores = learn(objective, optim, real_speech / "so762")
    chance = objective.chance()
    assert scores["accuracy"] > 8 / 101  # eight times chance; 0.121 when calibrated
    assert scores["contrastive"] < chance["contrastive"] - 0.25  # 4.21 and 4.62
    assert scores["masked_loss"] < chance["masked_loss"] - 0.4  # 4.41 and 5.08
    # Both mean nothing where the codes collapse.
    assert scores["code_ppl"] > 0.08 * 160  # 87.5 when calibrated
    # Knowing how often each code occurs costs 4.47; naming the commonest is right in 0.059, where
    # 0.081 was reached.
    assert scores["masked_loss"] < math.log(scores["target_ppl"])
    assert scores["masked_accuracy"] > 1.2 * scores["target_top_share"]


def test_tera_learns(real_speech: Path):
    objective = Tera(
        build_backbone(preset("filterbank-tiny", dim=128, ffn=256, layers=1, dropout=0.0)),
        # Over 480 ms a line is a poor guess; to beat it over less takes thousands of updates.
        Tera.Config(mask=SpanMask(0.3, 12)),
    )
    optim = OptimConfig(lr=3e-3, steps=300, warmup_steps=20, clip_norm=10.0)
    scores = learn(objective, optim, real_speech / "so762")
    assert scores["interpolation_ratio"] < 0.97  # 0.933 when calibrated
    assert scores["zero_ratio"] < 0.975  # 0.950 when calibrated
    assert scores["band_zero_ratio"] < 0.8  # 0.685 when calibrated
