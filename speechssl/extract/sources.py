"""Whatever holds audio (paths, arrays, manifest lines) as mono waves in padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from speechssl.audio import io
from speechssl.errors import AudioError, ConfigError, DataError
from speechssl.types import Utterance

if TYPE_CHECKING:
    from speechssl.geometry import FrameGeometry

Audio = str | Path | np.ndarray | Tensor | Utterance


@dataclass(frozen=True)
class Source:
    """One piece of audio, not yet read."""

    id: str
    num_samples: int  # at the model's rate; a plan, the wave read may differ by a sample
    read: Callable[[], np.ndarray]  # -> (S,) float32 mono in [-1, 1]


@dataclass(frozen=True)
class WaveBatch:
    """Waves read and padded with zeros, never shorter than one frame."""

    indices: list[int]  # places in the input sequence
    wave: Tensor  # (B, S) float32
    lens: Tensor  # (B,) int64 samples


def sources(audio: Sequence[Audio], rate_hz: int | None, model_rate_hz: int) -> list[Source]:
    """Describe `audio` for a model at `model_rate_hz`; `rate_hz` is the rate of all arrays.

    Arrays are (S,) floats in [-1, 1] or int16; files are mixed to mono. Ids are the path as
    given, the utterance's id, or the place of an array in the sequence.
    Raises ConfigError for a missing or useless rate_hz, AudioError for audio that is unusable.
    """
    if isinstance(audio, str | Path | Tensor | Utterance) or not isinstance(audio, Sequence):
        raise ConfigError(
            f"audio: got one {type(audio).__name__}, expected a list of paths or arrays; "
            "write [audio]"
        )
    arrays = [a for a in audio if isinstance(a, np.ndarray | Tensor)]
    if arrays and rate_hz is None:
        raise ConfigError("audio: arrays do not know their sample rate; give rate_hz=")
    if rate_hz is not None and audio and not arrays:
        raise ConfigError("rate_hz is for arrays, files know their own rate; leave it out")
    if rate_hz is not None and rate_hz <= 0:
        raise ConfigError(f"rate_hz: got {rate_hz}, expected samples per second above 0")
    return [_source(i, one, rate_hz or 0, model_rate_hz) for i, one in enumerate(audio)]


def padded_batches(
    found: Sequence[Source],
    geometry: FrameGeometry,
    batch_sec: float,
    on_error: Callable[[Source, DataError], None] | None = None,
) -> Iterator[WaveBatch]:
    """Read `found` in batches of similar length, at most `batch_sec` seconds with padding.

    A single longer source goes alone. Audio shorter than one frame is padded with zeros to one.
    With `on_error`, unreadable sources are handed to it and left out; otherwise they raise.
    """
    if batch_sec <= 0:
        raise ConfigError(f"batch_sec: got {batch_sec}, expected seconds above 0")
    limit = batch_sec * geometry.rate_hz
    order = sorted(range(len(found)), key=lambda i: (found[i].num_samples, i))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order):  # sorted: the last one taken is the longest
            longest = max(found[order[stop]].num_samples, geometry.receptive)
            if longest * (stop + 1 - start) > limit:
                break
            stop += 1
        batch = _read(found, order[start:stop], geometry.receptive, on_error)
        if batch is not None:
            yield batch
        start = stop


def _source(index: int, audio: Audio, rate_hz: int, model_rate_hz: int) -> Source:
    if isinstance(audio, Utterance):
        return Source(
            audio.id,
            audio.samples_at(model_rate_hz),
            lambda: io.read(audio.audio, audio.start, audio.num_samples, rate_hz=model_rate_hz),
        )
    if isinstance(audio, str | Path):
        info = io.probe(audio)
        samples = round(info.num_samples * model_rate_hz / info.rate_hz)
        return Source(str(audio), samples, lambda: io.read(audio, rate_hz=model_rate_hz))
    if isinstance(audio, np.ndarray | Tensor):
        wave = _checked(index, audio)
        samples = round(len(wave) * model_rate_hz / rate_hz)
        return Source(str(index), samples, lambda: io.resample(wave, rate_hz, model_rate_hz))
    raise ConfigError(
        f"audio[{index}]: got {type(audio).__name__}, expected a path, an array or an Utterance"
    )


def _checked(index: int, audio: np.ndarray | Tensor) -> np.ndarray:
    """The array as (S,) float32, or AudioError saying why it is no mono waveform."""
    if isinstance(audio, Tensor):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()
    wave = np.asarray(audio)
    where = f"audio[{index}]"
    if wave.ndim != 1:
        raise AudioError(
            f"{where}: got shape {wave.shape}, expected (samples,); "
            "choose or average the channels first, for example audio.mean(0)",
            kind="channels",
        )
    if wave.dtype == np.int16:
        wave = wave.astype(np.float32) / 32768
    elif wave.dtype.kind != "f":
        raise AudioError(
            f"{where}: got {wave.dtype} samples, expected floats in [-1, 1] or int16",
            kind="dtype",
        )
    if len(wave) == 0:
        raise AudioError(f"{where}: holds no samples", kind="empty")
    wave = np.ascontiguousarray(wave, dtype=np.float32)
    bad = ~np.isfinite(wave)
    if bad.any():
        raise AudioError(
            f"{where}: {int(bad.sum())} samples are NaN or Inf, the first is sample "
            f"{int(bad.argmax())}; repair or drop it",
            kind="nonfinite",
        )
    return wave


def _read(
    found: Sequence[Source],
    indices: Sequence[int],
    shortest: int,
    on_error: Callable[[Source, DataError], None] | None,
) -> WaveBatch | None:
    kept: list[int] = []
    waves: list[np.ndarray] = []
    for index in indices:
        try:
            wave = found[index].read()
        except DataError as error:
            if on_error is None:
                raise
            on_error(found[index], error)
            continue
        kept.append(index)
        waves.append(wave)
    if not kept:
        return None
    lens = [max(len(wave), shortest) for wave in waves]
    padded = torch.zeros(len(waves), max(lens))
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return WaveBatch(kept, padded, torch.tensor(lens))
