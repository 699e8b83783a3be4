"""What is clustered: a vector for every frame of an utterance, hand-made or a layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from speechssl.audio.features import HOP_SEC, WINDOW_SEC, mfcc39
from speechssl.errors import AudioError, ConfigError, DataError
from speechssl.extract.extractor import Extractor
from speechssl.extract.sources import Source, sources
from speechssl.extract.store import weights_digest
from speechssl.types import Utterance

Norm = Literal["none", "mean", "utterance"]
OnError = Callable[[Source, DataError], None]


class FrameSource(Protocol):
    """Vectors at a steady rate."""

    frames_hz: float  # vectors a second
    first_sec: float  # middle of the audio that the first one is about
    about: dict[str, Any]  # settings that tell one source from another

    def stream(
        self, utterances: Sequence[Utterance], on_error: OnError
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(index, vectors (T, F) float32) of each utterance, in whatever order is quick."""
        ...


class MfccFrames:
    """39 MFCCs every 10 ms, of which HuBERT makes its first labels (arXiv 2106.07447, sec. IV-B).

    Differs by choice: norm "mean" takes the mean of every coefficient off each utterance, and
    "utterance" brings its variance to 1 too, so that clusters say less about the speaker.
    """

    rate_hz = 16_000

    def __init__(self, norm: Norm = "none") -> None:
        self.norm: Norm = norm
        self.frames_hz = 1 / HOP_SEC
        self.first_sec = WINDOW_SEC / 2
        self.about: dict[str, Any] = {"features": "mfcc39", "norm": norm}

    def stream(
        self, utterances: Sequence[Utterance], on_error: OnError
    ) -> Iterator[tuple[int, np.ndarray]]:
        """See FrameSource; audio shorter than a window is an error of kind "short"."""
        for index, source in enumerate(sources(utterances, None, self.rate_hz)):
            try:
                vectors = mfcc39(source.read(), rate_hz=self.rate_hz)
                if not len(vectors):
                    raise AudioError(
                        f"'{source.id}': shorter than one window of {WINDOW_SEC * 1000:g} ms",
                        kind="short",
                    )
            except DataError as error:
                on_error(source, error)
                continue
            yield index, normed(vectors, self.norm)


class ModelFrames:
    """A layer of a model; layers count as in Extractor."""

    def __init__(self, extractor: Extractor, layer: int, norm: Norm = "none") -> None:
        geometry, last = extractor.geometry, extractor.backbone.num_layers
        if not -last - 1 <= layer <= last:
            raise ConfigError(f"layer: got {layer}, expected 0 to {last}, or -1 to {-last - 1}")
        self.extractor, self.layer = extractor, layer
        self.norm: Norm = norm
        self.frames_hz = geometry.rate_hz / geometry.hop
        self.first_sec = geometry.receptive / 2 / geometry.rate_hz
        self.about: dict[str, Any] = {
            "features": f"layer{layer % (last + 1)}",
            "norm": norm,
            "weights_sha256": weights_digest(extractor.backbone),
        }

    def stream(
        self, utterances: Sequence[Utterance], on_error: OnError
    ) -> Iterator[tuple[int, np.ndarray]]:
        """See FrameSource."""
        found = sources(utterances, None, self.extractor.geometry.rate_hz)
        for index, features in self.extractor.stream(found, self.layer, on_error):
            yield index, normed(features.values, self.norm)


def normed(x: np.ndarray, norm: Norm) -> np.ndarray:
    """Vectors x (T, F), each dimension of mean 0, and of variance 1, over time if so asked."""
    if norm == "none":
        return x
    if norm == "mean":
        return x - x.mean(0)
    spread = x.std(0)
    # A dimension that never moves, as in digital silence, is put to 0.
    return (x - x.mean(0)) / np.where(spread < 1e-5, np.inf, spread).astype(x.dtype)
