"""The plain engine: what a split changes (nothing), what NaN reaches (nothing), what resumes."""

import logging
import math

import pytest
import torch

from speechssl.engine.base import DivergedError
from speechssl.engine.config import EngineConfig, OptimConfig
from speechssl.engine.optim import LossScale, parameter_groups
from speechssl.engine.plain import PlainEngine
from speechssl.errors import ConfigError
from speechssl.types import Progress
from tests.distributed import toy

CPU = torch.device("cpu")


def engine_for(dropout=0.0, precision="fp32", **optim) -> PlainEngine:
    cfg = OptimConfig(lr=1e-2, steps=20, **optim)
    engine = EngineConfig(precision=precision, max_nonfinite_steps=3)
    return PlainEngine(toy.build(dropout), cfg, engine, CPU, Progress(max_steps=20, seed=5))


def weights(engine):
    return {k: v.clone() for k, v in engine.objective.state_dict().items()}


@pytest.mark.parametrize("micro", [2, 3, 7])
def test_accumulation_equals_one_big_batch(micro):
    one, many = engine_for(clip_norm=1.0), engine_for(clip_norm=1.0)
    for step in range(4):
        a = one.step(toy.ToyData().update(step))
        b = many.step(toy.ToyData(micro=micro).update(step))
        assert float(a.loss.count) == float(b.loss.count)
        assert float(a.loss.total) == pytest.approx(float(b.loss.total), rel=1e-6)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
        assert float(a.logs["bins"].count) == float(b.logs["bins"].count)
    # Adam divides by the gradient's size, which lifts rounding; hence absolute.
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(many)[name], value, rtol=0, atol=2e-6)


def test_filler_counts_nothing():
    plain, padded = engine_for(), engine_for()
    batch = toy.ToyData().update(0)
    a = plain.step(batch)
    b = padded.step([*batch, toy.collate([toy.utterance(7)], filler=True)])
    assert float(a.loss.total) == float(b.loss.total)
    assert float(a.logs["close"].count) == float(b.logs["close"].count)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(padded)[name], value, rtol=0, atol=1e-7)


def test_nan_batch_never_reaches_the_weights(caplog):
    engine = engine_for()
    engine.step(toy.ToyData().update(0))
    before = weights(engine)
    with caplog.at_level(logging.WARNING):
        stats = engine.step(toy.ToyData(micro=2, bad_at=(1,)).update(1))
    assert not stats.finite
    assert engine.progress.step == 2  # the data moves on
    assert "utt9" in caplog.text
    for name, value in before.items():
        assert torch.equal(weights(engine)[name], value), name
    assert engine.step(toy.ToyData().update(2)).finite


def test_lasting_nan_ends_the_run():
    engine = engine_for()
    data = toy.ToyData(bad_at=tuple(range(9)))
    for step in range(2):
        engine.step(data.update(step))
    with pytest.raises(DivergedError, match="3 updates in a row"):
        engine.step(data.update(2))


def test_wrong_count_is_an_error():
    batch = toy.collate([toy.utterance(1)])
    batch.num_targets += 1
    with pytest.raises(RuntimeError, match=r"Toy counted other targets.*utt1"):
        engine_for().step([batch])


def test_resume_is_bitwise(tmp_path):
    engine = engine_for(dropout=0.2)
    for step in range(3):
        engine.step(toy.ToyData(micro=2).update(step))
    engine.save(tmp_path)
    progress = engine.progress
    again = engine_for(dropout=0.2)
    again.load(tmp_path)
    again.progress = progress
    for step in range(3, 6):
        a = engine.step(toy.ToyData(micro=2).update(step))
        b = again.step(toy.ToyData(micro=2).update(step))
        assert float(a.loss.total) == float(b.loss.total)
    for name, value in weights(engine).items():
        assert torch.equal(weights(again)[name], value), name


def test_bf16_runs_under_autocast():
    full, half = engine_for(), engine_for(precision="bf16")
    a, b = (e.step(toy.ToyData().update(0)) for e in (full, half))
    assert half.objective.dtype_seen == torch.bfloat16
    assert float(b.loss.total) == pytest.approx(float(a.loss.total), rel=0.02)
    assert all(p.dtype == torch.float32 for p in half.objective.parameters())


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_is_what_the_processor_computes_in(native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    engine = engine_for(precision="auto")
    engine.step(toy.ToyData().update(0))
    assert engine.cfg.precision == ("bf16" if native else "fp32")
    assert engine.objective.dtype_seen == (torch.bfloat16 if native else torch.float32)


def test_fp16_is_refused_on_cpu():
    with pytest.raises(ConfigError, match="precision is fp16"):
        engine_for(precision="fp16")


def test_loss_scale_changes_nothing_but_range():
    plain, scaled = engine_for(clip_norm=0.5), engine_for(clip_norm=0.5)
    scaled.scale = LossScale(1024.0, dynamic=True)
    for step in range(3):
        a, b = (e.step(toy.ToyData().update(step)) for e in (plain, scaled))
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-6)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(scaled)[name], value, rtol=0, atol=1e-6)


def test_loss_scale_halves_and_recovers():
    scale = LossScale(8.0, dynamic=True, patience=2)
    assert scale.update(False)
    assert scale.value == 4
    assert not scale.update(True)
    scale.update(True)
    assert scale.value == 8


def test_clipping_bounds_the_update_not_the_reported_norm():
    loose, tight = engine_for(), engine_for(clip_norm=1e-3)
    a, b = (e.step(toy.ToyData().update(0)) for e in (loose, tight))
    assert a.grad_norm == pytest.approx(b.grad_norm)
    assert a.grad_norm > 1e-3


def test_evaluation_is_independent_of_batching_and_leaves_training_on():
    engine = engine_for(dropout=0.5)
    items = [toy.utterance(k) for k in range(4)]
    together = engine.evaluate([toy.collate(items)])
    apart = engine.evaluate([toy.collate([item]) for item in items])
    assert together["loss"] == pytest.approx(apart["loss"], rel=1e-6)
    assert engine.objective.training
    assert math.isfinite(together["close"])


def test_frozen_and_undecayed_parameters():
    objective = toy.build()
    objective.backbone.pool.requires_grad_(False)
    groups = parameter_groups(objective, OptimConfig(decay_all=False, weight_decay=0.1))
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    grouped = {id(p) for g in groups for p in g["params"]}
    assert id(objective.backbone.pool.weight) not in grouped
    assert all(p.ndim <= 1 for p in groups[1]["params"])
    objective.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        parameter_groups(objective, OptimConfig())


def test_a_batch_without_what_the_objective_needs_is_named(monkeypatch):
    engine = engine_for()
    monkeypatch.setattr(type(engine.objective), "needs", frozenset({"mask", "tokens"}))
    with pytest.raises(ConfigError, match="Toy needs batches with 'tokens'"):
        engine.step(toy.ToyData().update(0))
