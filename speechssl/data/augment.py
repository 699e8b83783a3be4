"""Which changes a training waveform gets, and where noise and rooms come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechssl.audio import augment, io
from speechssl.data.config import AugmentConfig
from speechssl.data.readers import gather
from speechssl.errors import AudioError, DataError
from speechssl.rng import seed_from
from speechssl.types import Utterance


class Augmenter:
    """Does what `AugmentConfig` asks for; runs in loader workers.

    Files of noise and rooms are listed, and their headers and ends read, when it is built.
    Raises DataError where one of them cannot be used.
    """

    def __init__(self, cfg: AugmentConfig, rate_hz: int) -> None:
        self.cfg = cfg
        self.rate_hz = rate_hz
        self.noises = _sounds("noise_files", cfg.noise_files)
        self.rooms = _sounds("reverb_files", cfg.reverb_files)

    def reading_rate_hz(self, seed: int, epoch: int, name: str) -> int:
        """The rate to read utterance `name` at in `epoch`; its speed follows (audio.augment).

        Planners ask for every utterance of an epoch before any is read, so one hash must do.
        """
        draw = seed_from(seed, epoch, name, "speed") / 2**63  # even in [0, 1)
        if draw >= self.cfg.speed_prob:
            return self.rate_hz
        factors = self.cfg.speed_factors
        factor = factors[int(draw / self.cfg.speed_prob * len(factors))]
        return augment.reading_rate_hz(self.rate_hz, factor)

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`wave` (S,) in a room, then with noise, then louder or softer, each if drawn so."""
        cfg = self.cfg
        in_room, noisy, scaled = rng.random(3) < (cfg.reverb_prob, cfg.noise_prob, cfg.gain_prob)
        if in_room:
            wave = augment.reverberate(wave, self._room(rng))
        if noisy:
            wave = augment.add_noise(wave, self._noise(len(wave), rng), rng, cfg.noise_snr_db)
        if scaled:
            wave = augment.gain(wave, rng, cfg.gain_db)
        return wave

    def _room(self, rng: np.random.Generator) -> np.ndarray:
        if not self.rooms:
            return augment.room_response(
                rng, self.rate_hz, rt60_sec=self.cfg.reverb_rt60_sec, drr_db=self.cfg.reverb_drr_db
            )
        room = self.rooms[rng.integers(len(self.rooms))]
        # One microphone: the mean of several hears every reflection more than once.
        response = io.read(
            room.audio, room.start, room.num_samples, rate_hz=self.rate_hz, channel=0
        )
        return augment.from_direct_sound(response)

    def _noise(self, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """(num_samples,) from a random place of a random file, or made: white or pink."""
        if not self.noises:
            if rng.random() < 0.5:
                return augment.white_noise(num_samples, rng)
            return augment.pink_noise(num_samples, rng, self.rate_hz)
        sound = self.noises[rng.integers(len(self.noises))]
        wanted = min(sound.num_samples, -(-num_samples * sound.rate_hz // self.rate_hz))
        start = sound.start + int(rng.integers(sound.num_samples - wanted + 1))
        noise = io.read(sound.audio, start, wanted, rate_hz=self.rate_hz)
        if len(noise) < num_samples:
            return augment.looped(noise, num_samples, rng)
        return noise[:num_samples]


def _sounds(setting: str, sources: Sequence[str]) -> list[Utterance]:
    """Every sound of some folders or manifests, in an order that is always the same."""
    found: list[Utterance] = []
    for source in sources:
        try:
            sounds, skips = gather(source)
            for sound in sounds:  # a copy that broke off has a sound header and no end
                io.read(sound.audio, sound.start + sound.num_samples - 1, 1, rate_hz=None)
        except (AudioError, DataError) as error:
            raise DataError(f"data.augment.{setting}: {error}") from error
        if skips.total:
            raise DataError(
                f"data.augment.{setting}: {source}: {skips.total} of {skips.total + len(sounds)} "
                "cannot be used; repair or remove them: " + "; ".join(skips.lines())
            )
        found += sounds
    return found
