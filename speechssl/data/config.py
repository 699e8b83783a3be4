"""Settings of the `data` section. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechssl.errors import ConfigError


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
