"""The watchdog: what it says of numbers, and of runs that are really broken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile as sf
import torch

from speechssl.data.config import DataConfig
from speechssl.data.labels import FrameLabels, LabelFacts, write_labels
from speechssl.data.loader import EvalData, TrainData
from speechssl.engine.base import DivergedError
from speechssl.engine.config import EngineConfig, OptimConfig, RunConfig
from speechssl.engine.loop import train
from speechssl.engine.watchdog import Watchdog
from speechssl.errors import DataError
from speechssl.models.backbone import Backbone
from speechssl.models.presets import preset
from speechssl.objectives.base import Alarm, Objective
from speechssl.objectives.bestrq import BestRQ
from speechssl.objectives.hubert import Hubert
from speechssl.objectives.masking import SpanMask
from speechssl.objectives.wav2vec2 import Wav2Vec2
from speechssl.types import Utterance


@dataclass
class Contrast:
    """As much of an objective as the watchdog asks."""

    best_metric: ClassVar = (("contrastive", False),)

    def chance(self) -> dict[str, float]:
        return {"contrastive": 4.615, "accuracy": 0.01}

    def alarms(self) -> tuple[Alarm, ...]:
        return (Alarm("code_ppl", "codes are out of use", low=20.0),)


def watched(records: list[dict[str, Any]], split: str = "train", warmup: int = 0) -> list[str]:
    dog = Watchdog(Contrast(), warmup, patience_steps=400)  # type: ignore[arg-type]
    return [t for i, r in enumerate(records) for t in dog.observe(50 * (i + 1), split, r)]


def test_a_loss_at_chance_without_a_gradient_is_dead():
    start = [{"contrastive": 4.8, "grad_norm": 10.0}]
    dead = {"contrastive": 4.6151, "grad_norm": 0.01}
    [told] = watched(start + [dead] * 12)
    assert told == (
        "contrastive 4.615 is at chance, 4.615, and the gradient norm 0.01 near 0 (it was 10) for "
        "400 updates: dead; lower optim.lr, lengthen optim.warmup_steps (train, step 500)"
    )
    assert not watched(start + [dead] * 8)
    # A plateau at chance whose gradient is alive is where wav2vec 2.0 begins.
    assert not watched(start + [dead | {"grad_norm": 1.0}] * 40)
    assert not watched(start + [dead | {"contrastive": 4.5}] * 40)


def test_worse_than_guessing_and_alarms_of_the_objective():
    [told] = watched([{"contrastive": 8.0}] * 3)
    assert told.startswith("contrastive 8 is far above chance, 4.615: worse than guessing")
    [told] = watched([{"code_ppl": 300.0}, *[{"code_ppl": 3.0}] * 3])
    assert told == "code_ppl 3: codes are out of use (train, step 150)"
    assert not watched([{"code_ppl": 3.0}, {"code_ppl": 300.0}] * 4)  # one bad window is none
    assert not watched([{"code_ppl": 3.0}] * 5, warmup=250)
    back = [{"code_ppl": 3.0}] * 2 + [{"code_ppl": 300.0}] + [{"code_ppl": 3.0}] * 3
    assert len(watched(back)) == 2  # news again after it was over


def test_frames_that_become_one():
    start = [{"std_l2": 0.03, "std_l2_healthy": 0.0625}]
    [told] = watched([*start, *[{"std_l2": 0.004, "std_l2_healthy": 0.0625}] * 2], "valid")
    assert "context frames are all one" in told
    # Untrained frames that lie close together may stay so for a while.
    close = {"std_l2": 0.004, "std_l2_healthy": 0.0625}
    assert not watched([close] * 5, "valid")


def test_what_was_told_before_an_interruption_is_not_told_again():
    dog = Watchdog(Contrast(), 0, 400)  # type: ignore[arg-type]
    rows = [{"step": 50 * i, "split": "train", "code_ppl": 3.0, "time": 1.0} for i in (1, 2, 3)]
    dog.recall([{"step": 10, "split": "train", "code_ppl": 200.0}, *rows])
    assert dog.healthy_step == 10
    assert not dog.observe(200, "train", {"code_ppl": 3.0})
    dog.recall([{"step": 250, "split": "train", "code_ppl": 90.0, "loss": None}])
    assert dog.healthy_step == 250


# Runs that are really broken.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Sixteen seconds of tones that come and go, in noise."""
    folder = tmp_path_factory.mktemp("tones")
    found = []
    for i in range(16):
        rng = np.random.default_rng(i)
        pitches = rng.uniform(150, 3000, 8)
        tones = [np.sin(2 * np.pi * hz * np.arange(2000) / 16000) for hz in pitches]
        wave = 0.2 * np.concatenate(tones) + rng.normal(0, 0.02, 16000)
        sf.write(folder / f"{i}.wav", wave, 16000)
        found.append(Utterance(f"u{i}", str(folder / f"{i}.wav"), 16000, 16000))
    return found


def run(
    out: Path,
    utterances: list[Utterance],
    build: type[Objective],
    settings: Any,
    *,
    lr: float = 5e-4,
    action: str = "stop",
    classes: tuple[str, ...] = (),
    labels: FrameLabels | None = None,
    steps: int = 60,
) -> None:
    torch.manual_seed(1)
    shape: dict[str, Any] = {"conv_dims": (16,) * 7, "dim": 32, "layers": 2, "heads": 2, "ffn": 48}
    cfg = preset("tiny", **shape, pos_kernel=8, pos_groups=4, dropout=0.0)
    objective = build(Backbone(cfg), settings, classes)
    data = DataConfig(max_sec=1, batch_sec=4, update_sec=4, workers=0)
    geometry, plan = objective.backbone.geometry, objective.plan_fn()
    train(
        objective,
        TrainData(utterances, geometry, data, plan, labels=labels),
        EvalData(utterances[:4], geometry, data, plan, labels=labels),
        RunConfig(
            str(out),
            log_every_steps=5,
            valid_every_steps=20,
            save_every_steps=20,
            watchdog=action,  # type: ignore[arg-type]
            watchdog_steps=20,
        ),
        OptimConfig(lr=lr, steps=steps, warmup_steps=5),
        EngineConfig(),
        export=lambda folder, weights: None,
        config={},
    )


CONTRAST = Wav2Vec2.Config(
    mask=SpanMask(0.5, 3),
    num_negatives=10,
    codes=8,
    code_dim=16,
    final_dim=16,
    code_init_std=0.3,
    penalty_weight=0.0,
)


def labelled(
    folder: Path, utterances: list[Utterance], clusters: int, used: int
) -> tuple[list[Utterance], FrameLabels]:
    """With random labels of which only the first `used` occur."""
    rows = [np.random.default_rng(i).integers(used, size=98) for i in range(len(utterances))]
    facts = LabelFacts("x", clusters, 100.0, 0.0125)
    write_labels(folder / "x.labels", rows, facts)
    found = [replace(u, labels=f"{folder / 'x.labels'}#{i}") for i, u in enumerate(utterances)]
    return found, FrameLabels(found, Backbone(preset("tiny")).geometry)


def test_healthy_runs_are_left_alone(tmp_path, corpus):
    run(tmp_path / "a", corpus, Wav2Vec2, CONTRAST)
    run(tmp_path / "b", corpus, BestRQ, BestRQ.Config(codes=16, mask=SpanMask(0.5, 3)))
    found, labels = labelled(tmp_path, corpus, 6, 6)
    settings = Hubert.Config(mask=SpanMask(0.5, 3), final_dim=16)
    run(tmp_path / "c", found, Hubert, settings, classes=labels.facts.names, labels=labels)


def test_a_temperature_near_0_is_named(tmp_path, corpus):
    with pytest.raises(DivergedError, match="contrastive .* worse than guessing.*temperature"):
        run(tmp_path, corpus, Wav2Vec2, replace(CONTRAST, logit_temperature=1e-3))


def test_a_learning_rate_50_times_too_high_is_named(tmp_path, corpus):
    with pytest.raises(DivergedError, match=r"dead|own code|out of use|one code per group|all one"):
        run(tmp_path, corpus, Wav2Vec2, CONTRAST, lr=50 * 2e-3, steps=200)


def test_labels_that_are_all_equal_are_named(tmp_path, corpus, caplog):
    found, labels = labelled(tmp_path, corpus, 6, 1)
    settings = Hubert.Config(mask=SpanMask(0.5, 3), final_dim=16)
    words: dict[str, Any] = {"classes": labels.facts.names, "labels": labels}
    with pytest.raises(DivergedError, match="top_code_share 1: .*labels degenerate"):
        run(tmp_path / "a", found, Hubert, settings, **words)
    run(tmp_path / "b", found, Hubert, settings, action="warn", steps=20, **words)
    assert "watchdog: top_code_share 1" in caplog.text
    caplog.clear()
    run(tmp_path / "c", found, Hubert, settings, action="off", steps=20, **words)
    assert "watchdog" not in caplog.text


def test_digital_silence_ends_at_the_loader(tmp_path, corpus):
    silent = []
    for u in corpus:
        path = tmp_path / Path(u.audio).name
        sf.write(path, np.zeros(16000), 16000)
        silent.append(replace(u, audio=str(path)))
    with pytest.raises(DataError, match="silent"):
        run(tmp_path / "run", silent, BestRQ, BestRQ.Config(codes=16, mask=SpanMask(0.5, 3)))


def test_it_says_where_all_was_well(tmp_path, corpus):
    found, labels = labelled(tmp_path, corpus, 6, 1)
    settings = Hubert.Config(mask=SpanMask(0.5, 3), final_dim=16)
    with pytest.raises(DivergedError, match=r"at step 15 .*All was well at step 0; checkpoints"):
        run(tmp_path / "a", found, Hubert, settings, classes=labels.facts.names, labels=labels)
