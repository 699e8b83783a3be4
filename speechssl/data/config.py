"""Settings of the `data` section. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from speechssl.errors import ConfigError


@dataclass(frozen=True)
class AugmentConfig:
    """How training audio is changed, in this order; each change has a probability of its own.

    Validation and evaluation always hear audio as it is. Ranges are drawn from evenly.
    """

    speed_prob: float = 0.0  # of a speed drawn from speed_factors; pitch changes with it
    speed_factors: tuple[float, ...] = (0.9, 1.0, 1.1)  # above 1 is faster and shorter
    reverb_prob: float = 0.0  # of a room around the speaker
    reverb_rt60_sec: tuple[float, float] = (0.2, 0.8)  # of generated rooms: time to fall by 60 dB
    reverb_drr_db: tuple[float, float] = (0.0, 12.0)  # of generated rooms: direct to reflected
    reverb_files: tuple[str, ...] = ()  # folders or manifests of impulse responses; none: generated
    noise_prob: float = 0.0  # of noise in the background
    noise_snr_db: tuple[float, float] = (5.0, 20.0)  # energy of speech to noise, whole waveform
    noise_files: tuple[str, ...] = ()  # folders or manifests of noise; none: white and pink noise
    gain_prob: float = 0.0  # of another loudness, which backbone.normalize would undo
    gain_db: tuple[float, float] = (-6.0, 6.0)

    def __post_init__(self) -> None:
        for change in ("speed", "reverb", "noise", "gain"):
            prob = getattr(self, f"{change}_prob")
            if not 0 <= prob <= 1:
                raise ConfigError(
                    f"data.augment: {change}_prob is {prob:g}, expected a probability from 0 to 1"
                )
            if getattr(self, f"{change}_files", ()) and prob == 0:
                raise ConfigError(
                    f"data.augment: {change}_files is given, but {change}_prob is 0; set "
                    f"{change}_prob above 0, or leave {change}_files out"
                )
        for name in ("reverb_rt60_sec", "reverb_drr_db", "noise_snr_db", "gain_db"):
            low, high = getattr(self, name)
            if not (low <= high and math.isfinite(low) and math.isfinite(high)):
                raise ConfigError(
                    f"data.augment: {name} is {low:g},{high:g}, expected LOW,HIGH with LOW at most "
                    "HIGH"
                )
        if self.reverb_rt60_sec[0] <= 0:
            raise ConfigError(
                f"data.augment: reverb_rt60_sec begins at {self.reverb_rt60_sec[0]:g} s, expected "
                "above 0"
            )
        if not self.speed_factors or not all(0.5 <= f <= 2 for f in self.speed_factors):
            raise ConfigError(
                f"data.augment: speed_factors is {list(self.speed_factors)}, expected factors from "
                "0.5 to 2, such as 0.9,1.0,1.1"
            )

    @property
    def on(self) -> bool:
        """Whether anything is ever changed."""
        return max(self.speed_prob, self.reverb_prob, self.noise_prob, self.gain_prob) > 0


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it is batched; sizes are seconds of audio."""

    train: tuple[str, ...] = ()  # manifests, joined
    valid: tuple[str, ...] = ()
    min_sec: float = 0.5  # shorter utterances are left out of training
    max_sec: float = 15.6  # longer ones are cropped (left out where they carry a transcript)
    update_sec: float = 96.0  # audio of one optimizer update over all ranks; accumulation follows
    batch_sec: float = 48.0  # most padded audio of one micro-batch on one rank
    bucket_updates: int = 16  # updates drawn from one pool sorted by length; 1 = no sorting
    channel: Literal["mix", "first"] = "mix"  # what to do with several channels
    unknown_text: Literal["skip", "error"] = (
        "skip"  # transcripts with characters not in the vocabulary
    )
    max_bad_fraction: float = 0.01  # of utterances that may be unusable before the run stops
    max_bad: int = 100
    workers: int = 2  # loader processes per rank; 0 = read in the training process
    seed: int = 1  # of order, crops, masks and every other random decision
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self) -> None:
        if not 0 <= self.min_sec < self.max_sec:
            raise ConfigError(
                f"data: min_sec {self.min_sec} must be at least 0 and below max_sec {self.max_sec}"
            )
        if self.max_sec > self.batch_sec:
            raise ConfigError(
                f"data: max_sec {self.max_sec} does not fit into batch_sec {self.batch_sec}; "
                "raise batch_sec (memory of one micro-batch) or lower max_sec (crop)"
            )
        if self.max_sec > self.update_sec:
            raise ConfigError(
                f"data: update_sec {self.update_sec} is smaller than max_sec {self.max_sec}; "
                "an update must hold at least one utterance"
            )
        if self.bucket_updates < 1 or self.workers < 0:
            raise ConfigError("data: bucket_updates must be at least 1 and workers at least 0")
