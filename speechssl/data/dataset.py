"""Utterances to waveforms: span, crop, rate, length. Runs in loader workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechssl.audio.io import is_silent, read
from speechssl.errors import AudioError
from speechssl.geometry import FrameGeometry
from speechssl.rng import generator
from speechssl.types import Utterance


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance as the network hears it."""

    utterance: Utterance
    wave: np.ndarray  # (S,) float32 at the model's rate


class SpeechDataset:
    """Reads utterances, cropped to at most `max_samples` (None = whole).

    A crop starts at a multiple of the hop, so that frame labels shift by whole frames; where it
    starts is a function of (seed, epoch, utterance id).
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        geometry: FrameGeometry,
        *,
        max_samples: int | None,
        seed: int,
        channel: str = "mix",
        reject_silence: bool = False,
    ) -> None:
        self.utterances = utterances
        self.geometry = geometry
        self.max_samples = max_samples
        self.seed = seed
        self.reject_silence = reject_silence
        self.channel = 0 if channel == "first" else "mix"

    def __len__(self) -> int:
        return len(self.utterances)

    def lengths(self) -> np.ndarray:
        """(N,) samples of each utterance after cropping, known without opening a file."""
        whole = np.array([u.samples_at(self.geometry.rate_hz) for u in self.utterances], np.int64)
        return whole if self.max_samples is None else np.minimum(whole, self.max_samples)

    def read(self, index: int, epoch: int) -> Example:
        """The example of utterance `index` in `epoch`.

        Raises AudioError where the audio is missing, damaged, shorter than promised, or silent
        (if `reject_silence`).
        """
        utterance = self.utterances[index]
        rate = self.geometry.rate_hz
        whole = utterance.samples_at(rate)
        wanted = whole if self.max_samples is None else min(whole, self.max_samples)
        first = 0
        if wanted < whole:
            starts = (whole - wanted) // self.geometry.hop + 1
            draw = generator(self.seed, epoch, utterance.id, "crop").integers(starts)
            first = int(draw) * self.geometry.hop
        scale = utterance.rate_hz / rate
        begin = utterance.start + round(first * scale)
        end = utterance.start + min(utterance.num_samples, round((first + wanted) * scale))
        wave = read(
            utterance.audio,
            begin,
            end - begin,
            rate_hz=rate,
            channel=self.channel,  # type: ignore[arg-type]
        )
        if self.reject_silence and is_silent(wave):
            raise AudioError(
                f"{utterance.audio}: utterance '{utterance.id}' is silent (below -80 dBFS); "
                "expected speech: drop it from the manifest",
                kind="silent",
            )
        # Resampling may round a sample up or down; the planned length is the one that counts.
        if len(wave) < wanted:
            wave = np.pad(wave, (0, wanted - len(wave)))
        return Example(utterance, wave[:wanted])
