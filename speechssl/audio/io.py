"""Sound files in, float32 waveforms out: look at the header, read a span, resample, write.

Reading is soundfile's (libsndfile) work and rate conversion soxr's. Nothing here warns or guesses:
a file that cannot be used raises AudioError, whose `kind` is the word reports count by.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soundfile
import soxr

from speechssl.atomic import replacing
from speechssl.audio.container import missing_bytes
from speechssl.errors import AudioError

log = logging.getLogger(__name__)

SILENCE_DBFS = -80.0
_NAMES = "wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 nist sph voc"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split(" "))
_FORMATS = {  # suffix -> libsndfile's format and subtype, for writing
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".aiff": ("AIFF", "PCM_16"),
    ".au": ("AU", "PCM_16"),
}
_BLOCK_SAMPLES = 1 << 20
_REPAIR = "fetch or convert the file again, or drop it from the list"


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the header says. `num_samples` counts per channel at the file's own rate."""

    num_samples: int
    rate_hz: int
    channels: int
    format: str  # container and coding, for example "FLAC/PCM_16"


class Level(NamedTuple):
    """How loud a span is: root mean square in dBFS, highest |sample|, share of samples at 1."""

    rms_dbfs: float
    peak: float
    clipped: float


def probe(path: str | Path) -> AudioInfo:
    """Read the header only, and check that the file is as long as the header says.

    Raises AudioError of kind missing, unreadable, bad_header, empty or truncated.
    """
    path = Path(path)
    with _opened(path) as file:
        info = AudioInfo(
            file.frames, file.samplerate, file.channels, f"{file.format}/{file.subtype}"
        )
    _check_whole(path)
    if info.num_samples <= 0:
        raise AudioError(
            f"{path}: a {info.format} header with 0 samples, expected sound; {_REPAIR}", "empty"
        )
    return info


def read(
    path: str | Path,
    start: int = 0,
    num_samples: int | None = None,
    *,
    rate_hz: int | None = 16_000,
    channel: Literal["mix"] | int = "mix",
) -> np.ndarray:
    """Read a span as one channel, converted to `rate_hz` (None keeps the file's rate).

    `start` and `num_samples` count samples at the FILE's rate; None reads to the end. "mix" is the
    mean of all channels, a number selects one. Returns (S,) float32; integer formats are scaled to
    [-1, 1], float formats are kept as they are, even beyond 1.

    Raises AudioError: the kinds of `probe`, and corrupt, nonfinite, span, channel.
    """
    path = Path(path)
    with _opened(path) as file:
        frames, from_hz = int(file.frames), int(file.samplerate)
        if num_samples is None:
            _check_whole(path)
        length = frames - start if num_samples is None else num_samples
        _check_span(path, start, length, frames)
        wave = _one_channel(path, _decode(path, file, start, length), channel)
    if not np.isfinite(wave).all():
        bad = int(np.flatnonzero(~np.isfinite(wave))[0]) + start
        raise AudioError(
            f"{path}: sample {bad} is NaN or infinite, expected finite numbers; {_REPAIR}",
            "nonfinite",
        )
    return wave if rate_hz is None else resample(wave, from_hz, rate_hz)


def measure(path: str | Path, start: int = 0, num_samples: int | None = None) -> Level:
    """Decode a whole span in blocks of bounded memory: proves it readable and says how loud it is.

    The mean of the channels is measured. Raises what `read` raises.
    """
    total, peak, clipped, count = 0.0, 0.0, 0, 0
    for wave in _blocks(Path(path), start, num_samples):
        size = np.abs(wave)
        total += float(np.square(wave, dtype=np.float64).sum())
        peak = max(peak, float(size.max()))
        clipped += int((size >= 0.999).sum())
        count += len(wave)
    return Level(_dbfs(total / count), peak, clipped / count)


def is_silent(wave: np.ndarray) -> bool:
    """True when the root mean square of `wave` (S,) lies below -80 dBFS, or nothing is there."""
    if wave.size == 0:
        return True
    return _dbfs(float(np.square(wave, dtype=np.float64).mean())) < SILENCE_DBFS


def resample(wave: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Convert the rate of `wave` (S,) with soxr's HQ filter.

    The result has round(S * to / from) samples, as `Utterance.samples_at` promises to planners.
    """
    if from_hz == to_hz:
        return wave
    converted = soxr.resample(wave, from_hz, to_hz, quality="HQ")
    length = (2 * len(wave) * to_hz + from_hz) // (2 * from_hz)
    if len(converted) < length:
        converted = np.pad(converted, (0, length - len(converted)))
    return np.ascontiguousarray(converted[:length], dtype=np.float32)


def write(path: str | Path, wave: np.ndarray, rate_hz: int) -> None:
    """Write `wave` (S,) or (S, channels), floats in [-1, 1], in the format of the suffix.

    Atomic: the file appears whole or not at all. Values beyond 1 are clipped by 16-bit formats.
    Raises AudioError of kind nonfinite or unreadable (a suffix that cannot be written).
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise AudioError(
            f"{path}: cannot write '{path.suffix}', expected one of {', '.join(sorted(_FORMATS))}"
        )
    if not np.isfinite(wave).all():
        raise AudioError(f"{path}: the waveform to write holds NaN or infinity", "nonfinite")
    container, subtype = _FORMATS[path.suffix.lower()]
    with replacing(path) as temporary:
        soundfile.write(temporary, wave, rate_hz, format=container, subtype=subtype)


def _opened(path: Path) -> soundfile.SoundFile:
    if not path.exists():
        where = f" (a link to {os.readlink(path)}, which is not there)" if path.is_symlink() else ""
        raise AudioError(f"{path}: no such file{where}; check the path in the manifest", "missing")
    if not path.is_file():
        raise AudioError(f"{path}: is not a file, expected a sound file", "unreadable")
    try:
        return soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, ValueError) as error:
        raise _open_error(path, error) from error


def _open_error(path: Path, error: Exception) -> AudioError:
    try:
        with path.open("rb") as file:
            magic = file.read(12)
    except OSError as denied:
        return AudioError(f"{path}: cannot be opened: {denied.strerror}; check its permissions")
    said = str(getattr(error, "error_string", error)).strip().rstrip(".") or "damaged header"
    if "SF_INFO" in said or "header" in said.lower():
        return AudioError(f"{path}: bad header ({said}); {_REPAIR}", "bad_header")
    found = f"begins with {magic!r}" if magic else "has 0 bytes"
    known = "WAV, FLAC, OGG, Opus, MP3, AIFF, AU, SPHERE"
    return AudioError(
        f"{path}: not readable as sound ({said}): the file {found}, expected one of {known}; "
        f"{_REPAIR}",
        "unreadable",
    )


def _check_whole(path: Path) -> None:
    if missing := missing_bytes(path):
        raise AudioError(
            f"{path}: truncated, at least {missing} bytes short of what its header promises "
            f"({path.stat().st_size} bytes found); {_REPAIR}",
            "truncated",
        )


def _check_span(path: Path, start: int, num_samples: int, frames: int) -> None:
    if start < 0 or num_samples <= 0 or start + num_samples > frames:
        kind = "empty" if frames <= 0 else "span"
        raise AudioError(
            f"{path}: asked for samples {start} to {start + num_samples}, the file holds {frames}; "
            f"make the manifest again, or {_REPAIR}",
            kind,
        )


def _decode(path: Path, file: soundfile.SoundFile, start: int, num_samples: int) -> np.ndarray:
    """(S, channels) float32, exactly `num_samples` long."""
    try:
        if start != file.tell():
            file.seek(start)
        wave = file.read(num_samples, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        said = str(getattr(error, "error_string", error)).strip() or "the decoder gave up"
        raise AudioError(
            f"{path}: corrupt, cannot decode samples {start} to {start + num_samples} ({said}); "
            f"{_REPAIR}",
            "corrupt",
        ) from error
    if len(wave) != num_samples:
        raise AudioError(
            f"{path}: truncated, got {len(wave)} samples from sample {start}, expected "
            f"{num_samples}; {_REPAIR}",
            "truncated",
        )
    return wave


def _one_channel(path: Path, wave: np.ndarray, channel: Literal["mix"] | int) -> np.ndarray:
    if channel == "mix":
        return wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)
    if not 0 <= channel < wave.shape[1]:
        raise AudioError(
            f"{path}: asked for channel {channel}, the file has {wave.shape[1]} (counted from 0); "
            "choose one of them or 'mix'",
            "channel",
        )
    return np.ascontiguousarray(wave[:, channel])


def _blocks(path: Path, start: int, num_samples: int | None) -> Iterator[np.ndarray]:
    if num_samples is None:
        num_samples = probe(path).num_samples - start
    for offset in range(0, num_samples, _BLOCK_SAMPLES):
        length = min(_BLOCK_SAMPLES, num_samples - offset)
        yield read(path, start + offset, length, rate_hz=None)


def _dbfs(power: float) -> float:
    return 10.0 * math.log10(power) if power > 0 else -math.inf
