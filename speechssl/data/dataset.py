"""Utterances to waveforms: span, speed, crop, rate, length. Runs in loader workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechssl.audio.io import is_silent, read
from speechssl.data.augment import Augmenter
from speechssl.data.labels import FrameLabels
from speechssl.errors import AudioError
from speechssl.geometry import FrameGeometry
from speechssl.rng import generator
from speechssl.types import Utterance


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance as the network hears it."""

    utterance: Utterance
    wave: np.ndarray  # (S,) float32 at the model's rate
    labels: np.ndarray | None = None  # (T, P) int64, of its frames


class SpeechDataset:
    """Reads utterances, cropped to at most `max_samples` (None = whole).

    A crop starts at a multiple of the hop, so that frame labels shift by whole frames; where it
    starts is a function of (seed, epoch, utterance id), as is all that `augment` changes.
    `least_frames` says how many each needs for its transcript, which goes with the whole utterance.
    With `labels`, those of the frames of the crop come along.
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
        augment: Augmenter | None = None,
        least_frames: Sequence[int] | None = None,
        labels: FrameLabels | None = None,
    ) -> None:
        self.utterances = utterances
        self.geometry = geometry
        self.max_samples = max_samples
        self.seed = seed
        self.reject_silence = reject_silence
        self.channel = 0 if channel == "first" else "mix"
        self.augment = augment
        self.least_frames = least_frames
        self.labels = labels

    def __len__(self) -> int:
        return len(self.utterances)

    def lengths(self, epoch: int | None = None) -> np.ndarray:
        """(N,) samples of each utterance after cropping, known without opening a file.

        Those of `epoch`, whose speeds are drawn; without one, those at the natural speed.
        """
        whole = np.array([self._heard(i, epoch)[1] for i in range(len(self))], np.int64)
        return whole if self.max_samples is None else np.minimum(whole, self.max_samples)

    def read(self, index: int, epoch: int) -> Example:
        """The example of utterance `index` in `epoch`.

        Raises AudioError where the audio is missing, damaged, shorter than promised, or silent
        (if `reject_silence`) all over: a silent crop gives way to one about the loudest sample.
        """
        utterance = self.utterances[index]
        rate, whole = self._heard(index, epoch)
        wanted = whole if self.max_samples is None else min(whole, self.max_samples)
        first, starts = 0, (whole - wanted) // self.geometry.hop + 1
        if wanted < whole:
            draw = generator(self.seed, epoch, utterance.id, "crop").integers(starts)
            first = int(draw) * self.geometry.hop
        wave = self._span(utterance, rate, first, wanted)
        if self.reject_silence and is_silent(wave):
            if wanted < whole:  # the crop may have fallen into a pause of good speech
                loudest = int(np.abs(self._span(utterance, rate, 0, whole)).argmax())
                place = (loudest - wanted // 2) // self.geometry.hop
                first = min(max(place, 0), starts - 1) * self.geometry.hop
                wave = self._span(utterance, rate, first, wanted)
            if is_silent(wave):
                raise AudioError(
                    f"{utterance.audio}: utterance '{utterance.id}' is silent (below -80 dBFS); "
                    "expected speech: drop it from the manifest",
                    kind="silent",
                )
        # Resampling may round a sample up or down; the planned length is the one that counts.
        if len(wave) < wanted:
            wave = np.pad(wave, (0, wanted - len(wave)))
        wave = wave[:wanted]
        if self.augment is not None:
            wave = self.augment(wave, generator(self.seed, epoch, utterance.id, "augment"))
        if self.labels is None:
            return Example(utterance, wave)
        hop, frames = self.geometry.hop, self.geometry.frames(len(wave))
        return Example(utterance, wave, self.labels.read(utterance, first // hop, frames))

    def _span(self, utterance: Utterance, rate_hz: int, first: int, wanted: int) -> np.ndarray:
        """Samples `first` to `first + wanted` of an utterance, counted at the rate of reading."""
        scale = utterance.rate_hz / rate_hz
        begin = utterance.start + round(first * scale)
        end = utterance.start + min(utterance.num_samples, round((first + wanted) * scale))
        return read(
            utterance.audio,
            begin,
            end - begin,
            rate_hz=rate_hz,
            channel=self.channel,  # type: ignore[arg-type]
        )

    def _heard(self, index: int, epoch: int | None) -> tuple[int, int]:
        """The rate to read an utterance at, and its whole length then: speed is a matter of rate.

        The speed is natural where another would leave less than a frame, or less than the
        transcript needs, or more than may be kept of an utterance that cannot be cropped.
        """
        utterance, natural = self.utterances[index], self.geometry.rate_hz
        rate = natural
        if self.augment is not None and epoch is not None:
            rate = self.augment.reading_rate_hz(self.seed, epoch, utterance.id)
        whole = utterance.samples_at(rate)
        if rate != natural:
            least = 1 if self.least_frames is None else self.least_frames[index]
            limit = None if self.least_frames is None else self.max_samples
            if self.geometry.frames(whole) < least or (limit is not None and whole > limit):
                return natural, utterance.samples_at(natural)
        return rate, whole
