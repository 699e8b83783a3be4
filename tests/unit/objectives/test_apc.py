"""APC against a slow reference, what it may not see, and what it is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.models.backbone import build_backbone, normalize
from speechssl.models.features.mel import LEAST_STD, LogMel
from speechssl.models.presets import preset
from speechssl.objectives.apc import APC
from speechssl.types import Batch
from tests.reference import apc_ref, bestrq_ref

GRU: dict[str, Any] = {
    "preset": "gru-tiny",
    "conv_dims": (8,) * 7,
    "dim": 16,
    "layers": 2,
    "dropout": 0.0,
}
TRANSFORMER: dict[str, Any] = {
    "causal": True,
    "conv_dims": (8,) * 7,
    "dim": 16,
    "layers": 2,
    "heads": 2,
    "ffn": 16,
    "pos_kernel": 8,
    "pos_groups": 4,
    "dropout": 0.0,
}
LENGTHS = [8000, 5200, 11100]


def build(backbone: dict[str, Any] = GRU, **settings: Any) -> APC:
    torch.manual_seed(3)
    sizes = dict(backbone)
    network = build_backbone(preset(sizes.pop("preset", "tiny"), **sizes))
    return APC(network, APC.Config(**{"mel_bins": 10} | settings))


def make_batch(objective: APC, lengths: list[int] = LENGTHS) -> Batch:
    wave = torch.zeros(len(lengths), max(lengths))
    for row, samples in enumerate(lengths):
        noise = np.random.default_rng(samples).standard_normal(samples).cumsum()
        wave[row, :samples] = torch.from_numpy(noise - noise.mean()).float() * 0.01
    wave_lens = torch.tensor(lengths)
    frame_lens = objective.backbone.geometry.frames(wave_lens)
    plan = objective.plan_fn()(frame_lens.numpy(), [], True)
    return Batch(
        ids=[str(n) for n in lengths],
        wave=wave,
        wave_lens=wave_lens,
        frame_lens=frame_lens,
        num_targets=plan.num_targets,
    )


def reference_targets(objective: APC, batch: Batch, row: int) -> list[torch.Tensor]:
    """What the frames of one utterance sound like, from that utterance alone."""
    samples = int(batch.wave_lens[row])
    wave = normalize(batch.wave[row : row + 1, :samples], batch.wave_lens[row : row + 1])
    mel = LogMel(objective.cfg.mel_bins)(wave)[0].double()
    ratio = objective.backbone.geometry.hop // 160
    stacked = [
        torch.cat([mel[min(ratio * i + j, len(mel) - 1)] for j in range(ratio)])
        for i in range(int(batch.frame_lens[row]))
    ]
    return bestrq_ref.normalised(stacked, LEAST_STD)


@pytest.mark.parametrize("backbone", [GRU, TRANSFORMER], ids=["gru", "transformer"])
@pytest.mark.parametrize("ahead", [None, 5])
def test_loss_and_gradients_equal_the_slow_reference(backbone: dict[str, Any], ahead: int | None):
    objective = build(backbone, ahead_frames=ahead).double()
    objective.mel.float()  # targets are made in single precision by design
    batch = make_batch(objective)
    targets = [reference_targets(objective, batch, row) for row in range(len(batch))]
    batch = replace(batch, wave=batch.wave.double())
    loss = objective(batch)
    loss.total.backward()
    got = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}

    objective.zero_grad()
    n = ahead or 2
    c = objective.backbone(batch.wave, batch.wave_lens)
    head, total = objective.head, torch.zeros((), dtype=torch.float64)
    for row, frames in enumerate(batch.frame_lens.tolist()):
        rows = list(c.x[row, :frames])
        total = total + apc_ref.loss(rows, targets[row], head.weight, head.bias, n)
    total.backward()
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert int(loss.count) == batch.num_targets == sum(batch.frame_lens.tolist()) - n * len(batch)
    wanted = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, atol=1e-6 * scale, rtol=1e-4, msg=name)


def test_baselines_are_those_of_each_utterance():
    objective = build()
    batch = make_batch(objective)
    found = objective.summary(objective(batch).logs)
    targets = [reference_targets(objective, batch, row) for row in range(len(batch))]

    def mean(error: Any, n: int) -> float:
        pairs = [(x[t], x[t + n]) for x in targets for t in range(len(x) - n)]
        return sum(float(error(a, b).abs().mean()) for a, b in pairs) / len(pairs)

    assert found["mean_l1"] == pytest.approx(mean(lambda a, b: b, 2), rel=1e-5)
    assert found["copy_l1"] == pytest.approx(mean(lambda a, b: b - a, 2), rel=1e-5)
    linear = sum(apc_ref.least_squares(x, 2) for x in targets) / batch.num_targets
    assert found["linear_l1"] == pytest.approx(linear, rel=1e-5)
    near = [(x[t + 1], x[t + 2]) for x in targets for t in range(len(x) - 2)]
    neighbour = sum(float((b - a).abs().mean()) for a, b in near) / len(near)
    assert found["neighbour_l1"] == pytest.approx(neighbour, rel=1e-5)
    assert found["to_copy"] == pytest.approx(found["l1"] / found["copy_l1"])
    assert found["to_linear"] == pytest.approx(found["l1"] / found["linear_l1"])


def test_naming_the_target_n_frames_ahead_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    objective = build()
    batch = make_batch(objective)
    x = objective.mel(batch)
    shifted = torch.roll(x, -2, dims=1)
    monkeypatch.setattr(objective.head, "forward", lambda c: shifted[:, : c.shape[1]])
    assert float(objective(batch).total.detach()) == 0.0
    late = torch.roll(x, -1, dims=1)
    monkeypatch.setattr(objective.head, "forward", lambda c: late[:, : c.shape[1]])
    loss = objective(batch)
    assert float(loss.total.detach()) == pytest.approx(float(loss.logs["neighbour_l1"].total))


@pytest.mark.parametrize("backbone", [GRU, TRANSFORMER], ids=["gru", "transformer"])
@torch.no_grad()
def test_predictions_depend_on_no_sample_of_their_targets(backbone: dict[str, Any]):
    objective = build(backbone | {"normalize": False}).eval()
    geometry, frame, lens = objective.backbone.geometry, 9, torch.tensor([11100])
    wave = make_batch(objective, [11100]).wave
    begins = (frame + objective.ahead) * geometry.hop
    assert begins >= geometry.samples(frame + 1)
    other = wave.clone()
    other[:, begins:] = torch.randn(11100 - begins)
    one, two = (objective.head(objective.backbone(x, lens).x)[0] for x in (wave, other))
    assert torch.equal(one[: frame + 1], two[: frame + 1])
    assert not torch.allclose(one[frame + 2], two[frame + 2])


def test_targets_follow_from_the_clean_waveform_and_take_no_gradient():
    objective = build()
    assert not objective.mel(make_batch(objective)).requires_grad
    assert not list(objective.mel.parameters())
    assert not objective.mel.state_dict()


@pytest.mark.parametrize(
    ("backbone", "settings", "told"),
    [
        (GRU, {"ahead_frames": 0}, "ahead_frames: got 0"),
        (GRU, {"ahead_frames": 1}, "sees 400 samples and its target begins 320 .*at least 2"),
        (GRU, {"mel_bins": 0}, "mel_bins: got 0"),
        (GRU | {"conv_strides": (5, 2, 2, 2, 2, 2, 1)}, {"ahead_frames": 2}, "400.*at least 3"),
        (GRU | {"conv_strides": (5, 3, 2, 2, 2, 2, 1)}, {}, "multiple of 160"),
        (TRANSFORMER | {"causal": False}, {}, "looks ahead"),
        ({"preset": "wav2vec-tiny"}, {}, "looks ahead"),
        ({"preset": "logmel"}, {}, "looks ahead"),
    ],
)
def test_bad_settings_are_refused(backbone: dict[str, Any], settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        build(backbone, **settings)
