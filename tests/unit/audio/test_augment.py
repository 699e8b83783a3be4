"""Each change of a waveform, measured: decibels, seconds, energy, place."""

import numpy as np
import pytest
import torch

from speechssl.audio import augment
from speechssl.audio.io import resample
from speechssl.rng import generator

RATE = 16000


def power_db(wave: np.ndarray) -> float:
    return 10 * np.log10(np.square(wave, dtype=np.float64).mean())


@pytest.fixture
def speech() -> np.ndarray:
    """Three seconds of noise in bursts, with a pause in the middle."""
    rng = np.random.default_rng(0)
    wave = rng.standard_normal(3 * RATE) * np.sin(np.arange(3 * RATE) / 3000) * 0.2
    wave[RATE : 2 * RATE] = 0
    return wave.astype(np.float32)


def test_gain_is_the_decibels_asked_for_and_nothing_is_clipped(speech):
    louder = augment.gain(speech, generator(1), (20.0, 20.0))
    assert power_db(louder) - power_db(speech) == pytest.approx(20, abs=1e-4)
    assert np.abs(louder).max() > 1
    changes = [
        power_db(augment.gain(speech, generator(k), (-6.0, 3.0))) - power_db(speech)
        for k in range(200)
    ]
    assert -6.001 <= min(changes) < -5.5
    assert 2.5 < max(changes) <= 3.001


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
@pytest.mark.parametrize("kind", ["white", "pink"])
def test_measured_signal_to_noise_ratio_is_the_one_asked_for(speech, snr_db, kind):
    noise = augment.white_noise(len(speech), generator(2))
    if kind == "pink":
        noise = augment.pink_noise(len(speech), generator(2), RATE)
    noisy = augment.add_noise(speech, noise, generator(3), (snr_db, snr_db))
    assert noisy.dtype == np.float32
    assert power_db(speech) - power_db(noisy - speech) == pytest.approx(snr_db, abs=0.05)


def test_noise_equals_torchaudio(speech):
    from torchaudio.functional import add_noise

    noise = augment.white_noise(len(speech), generator(2))
    theirs = add_noise(torch.from_numpy(speech), torch.from_numpy(noise), torch.tensor(7.0))
    ours = augment.add_noise(speech, noise, generator(3), (7.0, 7.0))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_silence_has_no_ratio_and_is_left_alone(speech):
    zeros = np.zeros_like(speech)
    for wave, noise in ((zeros, speech), (speech, zeros)):
        same = augment.add_noise(wave, noise, generator(1), (5.0, 5.0))
        np.testing.assert_array_equal(same, wave)
    np.testing.assert_array_equal(augment.reverberate(zeros, speech[:100]), zeros)
    np.testing.assert_array_equal(augment.reverberate(speech, zeros[:100]), speech)


def test_white_has_equal_power_per_hz_and_pink_per_octave():
    octaves = [(250, 500), (500, 1000), (1000, 2000), (2000, 4000)]
    freqs_hz = np.fft.rfftfreq(1 << 17, 1 / RATE)

    def octave_db(wave: np.ndarray) -> np.ndarray:
        power = np.abs(np.fft.rfft(wave)) ** 2
        bands = [power[(freqs_hz >= a) & (freqs_hz < b)].sum() for a, b in octaves]
        return np.diff(10 * np.log10(bands))

    white = augment.white_noise(1 << 17, generator(1))
    pink = augment.pink_noise(1 << 17, generator(1), RATE)
    np.testing.assert_allclose(octave_db(white), 3.01, atol=0.3)
    np.testing.assert_allclose(octave_db(pink), 0, atol=0.3)
    power = np.abs(np.fft.rfft(pink)) ** 2
    assert power[freqs_hz < 19].sum() < 1e-6 * power.sum()


@pytest.mark.parametrize("rt60_sec", [0.2, 0.5, 1.0])
def test_made_up_room_dies_away_in_the_time_asked_for(rt60_sec):
    measured = []
    for key in range(8):
        response = augment.room_response(
            generator(key), RATE, rt60_sec=(rt60_sec, rt60_sec), drr_db=(6.0, 6.0)
        )
        assert np.abs(response).argmax() == 0
        tail = np.square(response[1:], dtype=np.float64)
        assert 10 * np.log10(1 / tail.sum()) == pytest.approx(6, abs=0.01)
        # Schroeder: energy still to come; the time from -5 to -25 dB, three times.
        decay_db = 10 * np.log10(tail[::-1].cumsum()[::-1] / tail.sum())
        low, high = np.flatnonzero(decay_db < -25)[0], np.flatnonzero(decay_db < -5)[0]
        measured.append(3 * (low - high) / RATE)
    assert np.mean(measured) == pytest.approx(rt60_sec, rel=0.06)
    np.testing.assert_allclose(measured, rt60_sec, rtol=0.2)


def test_reverberation_keeps_length_place_and_energy(speech):
    rng = generator(5)
    response = augment.room_response(rng, RATE, rt60_sec=(0.4, 0.4), drr_db=(0.0, 0.0))
    heard = augment.reverberate(speech, response)
    assert heard.shape == speech.shape
    assert heard.dtype == np.float32
    assert power_db(heard) == pytest.approx(power_db(speech), abs=1e-3)
    assert np.abs(heard[RATE : RATE + 2000]).max() > 0.01  # it rings on into the pause
    click = np.zeros(RATE, np.float32)
    click[4321] = 1
    echo = augment.reverberate(click, response)
    assert np.abs(echo).argmax() == 4321
    assert np.abs(echo[:4321]).max() < 1e-6


def test_convolution_equals_torchaudio(speech):
    from torchaudio.functional import fftconvolve

    response = augment.room_response(generator(5), RATE, rt60_sec=(0.4, 0.4), drr_db=(3.0, 3.0))
    theirs = fftconvolve(torch.from_numpy(speech), torch.from_numpy(response))[: len(speech)]
    theirs = theirs.numpy() * np.linalg.norm(speech) / np.linalg.norm(theirs.numpy())
    np.testing.assert_allclose(augment.reverberate(speech, response), theirs, atol=1e-5)


def test_recorded_room_starts_at_its_direct_sound(speech):
    recorded = np.zeros(3000, np.float32)
    recorded[700], recorded[1500] = -0.8, 0.3
    response = augment.from_direct_sound(recorded)
    assert len(response) == 2300
    heard = augment.reverberate(speech, response)
    assert np.argmax(np.abs(np.correlate(heard[2000:9000], speech[2500:8500]))) == 500


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 1.5])
def test_speed_moves_the_pitch_and_shortens_by_the_factor(factor):
    sine = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE).astype(np.float32)
    faster = resample(sine, RATE, augment.reading_rate_hz(RATE, factor))
    assert len(faster) == pytest.approx(len(sine) / factor, abs=2)
    spectrum = np.abs(np.fft.rfft(faster * np.hanning(len(faster)), 1 << 18))
    pitch_hz = spectrum.argmax() * RATE / (1 << 18)
    assert pitch_hz == pytest.approx(440 * factor, rel=2e-4)


def test_short_noise_is_repeated_from_anywhere():
    ramp = np.arange(5, dtype=np.float32)
    firsts = set()
    for key in range(40):
        wave = augment.looped(ramp, 12, generator(key))
        assert len(wave) == 12
        np.testing.assert_array_equal(np.diff(wave) % 5, 1)
        firsts.add(float(wave[0]))
    assert firsts == {0, 1, 2, 3, 4}


def test_the_same_key_gives_the_same_draw(speech):
    def change(*key: int | str) -> np.ndarray:
        rng = generator(*key)
        room = augment.room_response(rng, RATE, rt60_sec=(0.2, 0.8), drr_db=(0.0, 12.0))
        wave = augment.reverberate(speech, room)
        wave = augment.add_noise(wave, augment.pink_noise(len(wave), rng, RATE), rng, (5.0, 20.0))
        return augment.gain(wave, rng, (-6.0, 6.0))

    before = speech.copy()
    np.testing.assert_array_equal(change(1, 0, "a", "augment"), change(1, 0, "a", "augment"))
    assert not np.array_equal(change(1, 0, "a", "augment"), change(1, 1, "a", "augment"))
    np.testing.assert_array_equal(speech, before)  # nothing is changed in place
