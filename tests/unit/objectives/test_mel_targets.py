"""Targets of log-mel frames, and the line that they are compared with."""

from __future__ import annotations

import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.geometry import FrameGeometry
from speechssl.models.backbone import normalize
from speechssl.models.features.mel import LEAST_STD, LogMel
from speechssl.objectives.mel_targets import MelTargets
from speechssl.types import Batch
from tests.reference import mel_ref

GEOMETRY = FrameGeometry((400, 2), (160, 2))


def test_targets_equal_the_slow_reference():
    lens = torch.tensor([8000, 5200])
    wave = torch.randn(2, 8000) * torch.linspace(0.01, 0.2, 8000)
    wave[torch.arange(8000) >= lens[:, None]] = 0.0
    frame_lens = GEOMETRY.frames(lens)
    made = MelTargets(GEOMETRY, 6, "x")
    found = made(Batch(["a", "b"], wave, lens, frame_lens, 0))
    assert found.shape == (2, int(frame_lens.max()), made.dim)
    for row, (samples, frames) in enumerate(zip(lens.tolist(), frame_lens.tolist(), strict=True)):
        mel = LogMel(6)(normalize(wave[row : row + 1, :samples], lens[row : row + 1]))[0].double()
        wanted = mel_ref.standardised(mel_ref.stacked(mel, frames, 2), LEAST_STD)
        torch.testing.assert_close(
            found[row, :frames].double(),
            torch.tensor(wanted, dtype=torch.float64),
            atol=1e-5,
            rtol=1e-5,
        )
        assert not found[row, frames:].any()


@pytest.mark.parametrize(
    "hidden",
    ["..##.", "##...", "...##", "#####", "#.#.#", "....."],
    ids=["middle", "start", "end", "all", "every other", "none"],
)
@pytest.mark.parametrize("frames", [5, 4])
def test_the_line_equals_the_slow_reference(hidden: str, frames: int):
    made = MelTargets(GEOMETRY, 3, "x")
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[c == "#" for c in hidden]])
    mask[:, frames:] = False  # padding, which no line may be drawn to
    found = made.interpolated(x, mask, torch.tensor([frames]))[0, :frames]
    mel = x[0, :frames].reshape(2 * frames, 3).tolist()
    parts = [bool(h) for h in mask[0, :frames] for _ in range(2)]
    wanted = torch.tensor(mel_ref.line(mel, parts), dtype=torch.float64)
    torch.testing.assert_close(found, wanted.reshape(frames, 6))


@pytest.mark.parametrize(
    ("geometry", "told"),
    [(FrameGeometry((10,), (150,)), "150 samples"), (FrameGeometry((400,), (160,), 8000), "8000")],
)
def test_frames_that_are_no_multiple_of_10_ms_are_refused(geometry: FrameGeometry, told: str):
    with pytest.raises(ConfigError, match=told):
        MelTargets(geometry, 80, "x")
