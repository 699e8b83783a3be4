"""Bad sound files give errors of the right kind; good ones come out exact."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.audio import io
from speechssl.errors import AudioError
from speechssl.types import Utterance


def tone(num_samples: int = 16_000, rate_hz: int = 16_000, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(num_samples) / rate_hz)).astype(np.float32)


def cut(path: Path, fraction: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def failure(call, *args, **kwargs) -> AudioError:
    with pytest.raises(AudioError) as caught:
        call(*args, **kwargs)
    return caught.value


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "au"])
def test_write_probe_read_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new folder" / f"größe 1.{suffix}"
    io.write(path, tone(), 16_000)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    info = io.probe(path)
    assert (info.num_samples, info.rate_hz, info.channels) == (16_000, 16_000, 1)
    wave = io.read(path)
    assert wave.dtype == np.float32
    assert np.abs(wave[4000:12_000] - tone()[4000:12_000]).max() < 0.05


def test_span_equals_slice_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    io.write(path, tone(), 16_000)
    np.testing.assert_array_equal(io.read(path, 1234, 777), io.read(path)[1234:2011])


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 44_100, 48_000])
def test_resampled_length_is_what_manifests_promise(tmp_path: Path, rate_hz: int) -> None:
    path = tmp_path / "a.wav"
    io.write(path, tone(rate_hz + 7, rate_hz), rate_hz)
    wave = io.read(path)
    assert len(wave) == Utterance("a", str(path), rate_hz + 7, rate_hz).samples_at(16_000)
    middle = slice(4000, 12_000)
    assert np.abs(wave[middle] - tone()[middle]).max() < 0.01


def test_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    left, right = tone(), tone(hz=100)
    io.write(path, np.stack([left, right], axis=1), 16_000)
    np.testing.assert_allclose(io.read(path), (left + right) / 2, atol=1e-4)
    np.testing.assert_allclose(io.read(path, channel=1), right, atol=1e-4)
    error = failure(io.read, path, channel=2)
    assert error.kind == "channel"
    assert "has 2" in str(error)


def test_float_peaks_beyond_one_are_kept(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone() * 40, 16_000, subtype="FLOAT")
    assert io.read(tmp_path / "a.wav").max() == pytest.approx(12.0, rel=1e-3)


def test_flac_named_wav_is_accepted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), 16_000, format="FLAC")
    assert io.probe(tmp_path / "a.wav").format == "FLAC/PCM_16"


def test_not_sound(tmp_path: Path) -> None:
    (tmp_path / "zero.wav").touch()
    (tmp_path / "text.wav").write_text("hello there, I am text")
    (tmp_path / "folder.wav").mkdir()
    for name in ("zero.wav", "text.wav", "folder.wav"):
        error = failure(io.probe, tmp_path / name)
        assert error.kind == "unreadable"
        assert name in str(error)
    assert "hello there" in str(failure(io.probe, tmp_path / "text.wav"))


def test_missing_file_and_broken_link(tmp_path: Path) -> None:
    assert failure(io.probe, tmp_path / "no.wav").kind == "missing"
    (tmp_path / "link.wav").symlink_to("/nowhere/target.wav")
    error = failure(io.read, tmp_path / "link.wav")
    assert error.kind == "missing"
    assert "/nowhere/target.wav" in str(error)


def test_header_only(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.float32), 16_000)
    assert failure(io.probe, tmp_path / "a.wav").kind == "empty"
    assert failure(io.read, tmp_path / "a.wav").kind == "empty"


def test_sample_rate_zero(tmp_path: Path) -> None:
    io.write(tmp_path / "a.wav", tone(), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = bytes(4)
    (tmp_path / "a.wav").write_bytes(content)
    assert failure(io.probe, tmp_path / "a.wav").kind == "bad_header"


@pytest.mark.parametrize("name", ["WAV", "RF64", "AIFF", "AU", "W64", "NIST"])
def test_truncation_that_libsndfile_hides(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name.lower()}"
    soundfile.write(path, tone(), 16_000, format=name)
    io.probe(path)
    cut(path)
    assert failure(io.probe, path).kind == "truncated"
    assert failure(io.read, path).kind == "truncated"


def test_truncated_ogg(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    noise = np.random.default_rng(0).standard_normal(160_000).astype(np.float32) * 0.1
    io.write(path, noise, 16_000)
    io.probe(path)
    assert failure(io.probe, cut(path)).kind in ("truncated", "unreadable")


def test_truncated_flac_fails_when_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    io.write(path, tone(), 16_000)
    cut(path)
    assert failure(io.read, path).kind in ("corrupt", "truncated")
    assert failure(io.measure, path).kind in ("corrupt", "truncated")


def test_wav_written_to_a_pipe_is_accepted(tmp_path: Path) -> None:
    io.write(tmp_path / "a.wav", tone(), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    assert len(io.read(tmp_path / "a.wav")) == 16_000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite(tmp_path: Path, value: float) -> None:
    wave = tone()
    wave[777] = value
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    error = failure(io.read, tmp_path / "a.wav")
    assert error.kind == "nonfinite"
    assert "sample 777" in str(error)
    assert failure(io.write, tmp_path / "b.wav", wave, 16_000).kind == "nonfinite"
    assert not (tmp_path / "b.wav").exists()


def test_span_beyond_the_end(tmp_path: Path) -> None:
    io.write(tmp_path / "a.wav", tone(), 16_000)
    error = failure(io.read, tmp_path / "a.wav", 15_000, 2_000)
    assert error.kind == "span"
    assert "holds 16000" in str(error)


def test_silence_and_level(tmp_path: Path) -> None:
    assert io.is_silent(np.zeros(100, np.float32))
    assert io.is_silent(np.zeros(0, np.float32))
    assert io.is_silent(np.full(100, 9e-5, np.float32))
    assert not io.is_silent(np.full(100, 1.1e-4, np.float32))
    io.write(tmp_path / "a.wav", tone(), 16_000)
    level = io.measure(tmp_path / "a.wav")
    assert level.rms_dbfs == pytest.approx(20 * np.log10(0.3 / np.sqrt(2)), abs=0.01)
    assert level.peak == pytest.approx(0.3, abs=1e-3)
    assert level.clipped == 0


def test_unknown_suffix_to_write(tmp_path: Path) -> None:
    assert "expected one of" in str(failure(io.write, tmp_path / "a.xyz", tone(), 16_000))
