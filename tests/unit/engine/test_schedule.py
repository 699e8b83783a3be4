"""Learning rates at the corners of every schedule."""

import pytest

from speechssl.engine.config import EngineConfig, OptimConfig, RunConfig
from speechssl.engine.schedule import lr_at
from speechssl.errors import ConfigError


def test_tri_stage():
    cfg = OptimConfig(lr=1.0, steps=100, schedule="tri_stage", warmup_steps=10, hold_steps=40)
    assert [lr_at(cfg, s) for s in (0, 5, 10, 30, 50)] == pytest.approx([0.01, 0.505, 1, 1, 1])
    assert lr_at(cfg, 75) == pytest.approx(0.05**0.5)
    assert lr_at(cfg, 100) == pytest.approx(0.05)


def test_linear():
    cfg = OptimConfig(lr=2.0, steps=110, warmup_steps=10, start_scale=0.0)
    values = [lr_at(cfg, s) for s in (0, 5, 10, 60, 109, 110, 500)]
    assert values == pytest.approx([0, 1, 2, 1, 0.02, 0, 0])


def test_cosine():
    cfg = OptimConfig(lr=1.0, steps=100, schedule="cosine", final_scale=0.2)
    assert [lr_at(cfg, s) for s in (0, 50, 100)] == pytest.approx([1.0, 0.6, 0.2])


def test_constant_after_warmup():
    cfg = OptimConfig(lr=1.0, steps=9, schedule="constant", warmup_steps=3)
    assert [lr_at(cfg, s) for s in (3, 8, 9)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"lr": 0.0}, "optim.lr"),
        ({"steps": 10, "warmup_steps": 11}, "optim.warmup_steps"),
        ({"hold_steps": 5}, "optim.hold_steps"),
        ({"schedule": "tri_stage", "final_scale": 0.0}, "optim.final_scale"),
        ({"clip_norm": -1.0}, "optim.clip_norm"),
    ],
)
def test_wrong_optim_names_the_key(values, key):
    with pytest.raises(ConfigError, match=key):
        OptimConfig(**values)


def test_zero_stage_needs_deepspeed():
    with pytest.raises(ConfigError, match="zero_stage"):
        EngineConfig(kind="plain", zero_stage=2)


def test_intervals_are_positive():
    with pytest.raises(ConfigError, match=r"run\.keep"):
        RunConfig(keep=0)
