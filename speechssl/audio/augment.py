"""Changes of one waveform (S,) that training may hear: gain, noise, reverberation, speed.

Each function draws from the generator it is given and returns a new float32 waveform of the same
length. Nothing is clipped: float audio may go beyond 1. numpy computes all of it, and not
torchaudio's `add_noise` and `fftconvolve` (tests compare with both): what torch adds up depends on
its number of threads in the last bits, and a batch must not depend on where it was made.
"""

from __future__ import annotations

import numpy as np

_LOWEST_HZ = 20.0  # generated pink noise has nothing below: half its power would be inaudible
_FFT_STEP = 4096  # transforms of a multiple of this have small factors, so are fast


def gain(wave: np.ndarray, rng: np.random.Generator, db: tuple[float, float]) -> np.ndarray:
    """`wave` louder by an even draw from `db`, a range in dB."""
    return (wave * 10 ** (rng.uniform(*db) / 20)).astype(np.float32)


def add_noise(
    wave: np.ndarray, noise: np.ndarray, rng: np.random.Generator, snr_db: tuple[float, float]
) -> np.ndarray:
    """`wave` plus `noise` (S,), scaled to a signal-to-noise ratio drawn evenly from `snr_db`.

    The ratio is that of the energies over the whole waveform, pauses included. Silence on either
    side has no ratio: the waveform is returned as it is.
    """
    ratio_db = rng.uniform(*snr_db)
    speech_energy, noise_energy = _energy(wave), _energy(noise)
    if speech_energy == 0 or noise_energy == 0:
        return wave
    scale = np.sqrt(speech_energy / noise_energy) * 10 ** (-ratio_db / 20)
    return (wave + scale * noise).astype(np.float32)


def white_noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """(num_samples,) float32, Gaussian, of unit variance: equal power per Hz."""
    return rng.standard_normal(num_samples, np.float32)


def pink_noise(num_samples: int, rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """(num_samples,) float32 noise of equal power per octave, from 20 Hz up to half the rate."""
    size = _fast_size(num_samples)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    freqs_hz = np.fft.rfftfreq(size, 1 / rate_hz)
    audible = freqs_hz >= _LOWEST_HZ
    spectrum[~audible] = 0
    spectrum[audible] /= np.sqrt(freqs_hz[audible] / _LOWEST_HZ)
    return np.fft.irfft(spectrum, size)[:num_samples].astype(np.float32)


def room_response(
    rng: np.random.Generator,
    rate_hz: int,
    *,
    rt60_sec: tuple[float, float],
    drr_db: tuple[float, float],
) -> np.ndarray:
    """Impulse response (R,) of a made-up room: direct sound at 0, then noise that dies away.

    Gaussian noise falls by 60 dB within a time drawn from `rt60_sec`, after which it is cut; the
    direct sound has more energy than all of it by a draw from `drr_db`. J. D. Polack's model of
    late reverberation (1988). Differs: the first reflections are noise too.
    """
    seconds, ratio_db = rng.uniform(*rt60_sec), rng.uniform(*drr_db)
    num_samples = max(2, round(seconds * rate_hz))
    response = rng.standard_normal(num_samples) * 10 ** (-3 * np.arange(num_samples) / num_samples)
    response[0] = 0
    response *= np.sqrt(10 ** (-ratio_db / 10) / _energy(response))
    response[0] = 1
    return response.astype(np.float32)


def from_direct_sound(response: np.ndarray) -> np.ndarray:
    """A recorded impulse response (R,) from its highest peak on, which is the direct sound."""
    return response[int(np.abs(response).argmax()) :]


def reverberate(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """`wave` in a room with impulse response `response` (R,), whose direct sound is at 0.

    Speech stays where it was, what rings on after the end is cut, and the energy of the whole is
    that of `wave`. A silent response changes nothing.
    """
    size = _fast_size(len(wave) + len(response) - 1)
    spectrum = np.fft.rfft(wave, size) * np.fft.rfft(response, size)
    heard = np.fft.irfft(spectrum, size)[: len(wave)]
    energy = _energy(heard)
    if energy == 0:
        return wave
    return (heard * np.sqrt(_energy(wave) / energy)).astype(np.float32)


def reading_rate_hz(rate_hz: int, factor: float) -> int:
    """The rate to resample a recording to so that, played at `rate_hz`, it is `factor` as fast.

    Speed is Kaldi's: pitch and formants move with it, and S samples become round(S / factor). One
    resampling does both, that of the file's rate and that of the speed. Rounding to whole Hz
    changes the factor by less than 1e-4 at 16 kHz.
    """
    return round(rate_hz / factor)


def looped(wave: np.ndarray, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """(num_samples,) of `wave` repeated, from a random sample of it on."""
    return np.resize(np.roll(wave, -int(rng.integers(len(wave)))), num_samples)


def _energy(wave: np.ndarray) -> float:
    return float(np.square(wave, dtype=np.float64).sum())


def _fast_size(num_samples: int) -> int:
    return -(-num_samples // _FFT_STEP) * _FFT_STEP
