"""Features of any audio, from any layer, with the time of every frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from speechssl.errors import ConfigError, DataError
from speechssl.extract.sources import Audio, Source, padded_batches, sources
from speechssl.models.bundle import Bundle, load
from speechssl.types import Frames

Layer = int | Literal["all", "mean"]
Precision = Literal["fp32", "bf16"]
Convention = Literal["s3prl", "hf"]


@dataclass(frozen=True)
class Features:
    """What the model makes of one piece of audio.

    Frame i sees the `receptive_sec` seconds around `times_sec[i]`; frames are `hop_sec` apart.
    """

    id: str
    values: np.ndarray  # (T, D) float32; (L + 1, T, D) for layer="all"
    times_sec: np.ndarray  # (T,) float64, centre of each frame's receptive field
    hop_sec: float
    receptive_sec: float


class Extractor:
    """Runs a model over audio in padded batches; results do not depend on the batching.

    `bundle` is a loaded model, a model folder or a hub id; it is moved to `device` where one is
    given, and otherwise runs where it is. `batch_sec` bounds the seconds of
    audio, padding included, that the network sees at once; a single longer file goes alone.
    `convention` says what the last state of a pre-norm network is: `s3prl` the final output, after
    the last norm (also fairseq and transformers 4), `hf` what goes into that norm (hidden_states of
    transformers 5). All other states, and all of post-norm networks, are the same in both.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        device: str | torch.device | None = None,
        batch_sec: float = 60.0,
        precision: Precision = "fp32",
        convention: Convention = "s3prl",
    ) -> None:
        if convention not in ("s3prl", "hf"):
            raise ConfigError(f"convention: got '{convention}', expected 's3prl' or 'hf'")
        if precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision: got '{precision}', expected 'fp32' or 'bf16'")
        bundle = bundle if isinstance(bundle, Bundle) else load(bundle)
        self.backbone = bundle.backbone.to(device).eval()
        tensors = chain(self.backbone.parameters(), self.backbone.buffers())
        self.device = next((t.device for t in tensors), torch.device(device or "cpu"))
        self.batch_sec = batch_sec
        self.precision = precision
        self.convention = convention
        self.geometry = self.backbone.geometry

    def __call__(
        self, audio: Sequence[Audio], *, rate_hz: int | None = None, layer: Layer = -1
    ) -> list[Features]:
        """Features of each of `audio` (paths, (S,) arrays, manifest utterances), in its order.

        `rate_hz` is the sample rate of the arrays (required with arrays); any rate is resampled.
        `layer`: 0 .. L counts the input of each of the L layers and then the last state, as
        SUPERB does; -1 is the last state; "all" stacks the L + 1 states, "mean" averages them.
        Audio shorter than one frame (400 samples at 16 kHz) is padded with zeros to one frame.
        Raises AudioError for audio that cannot be used, ConfigError for wrong arguments.
        """
        found = sources(audio, rate_hz, self.backbone.cfg.rate_hz)
        results: list[Features | None] = [None] * len(found)
        for index, features in self.stream(found, layer):
            results[index] = features
        return [features for features in results if features is not None]

    @torch.no_grad()
    def stream(
        self,
        found: Sequence[Source],
        layer: Layer = -1,
        on_error: Callable[[Source, DataError], None] | None = None,
    ) -> Iterator[tuple[int, Features]]:
        """(index into `found`, features) batch by batch, shortest first; memory stays bounded.

        With `on_error`, unreadable sources are handed to it and skipped; otherwise they raise.
        """
        pick = self._picker(layer)
        rate_hz, geometry = self.backbone.cfg.rate_hz, self.geometry
        for batch in padded_batches(found, geometry, self.batch_sec, on_error):
            with torch.autocast(
                self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
            ):
                frames = self.backbone(
                    batch.wave.to(self.device),
                    batch.lens.to(self.device),
                    layers=layer != -1 or self.convention == "hf",
                )
            values = pick(frames).float().cpu().numpy()  # (B, [L + 1,] T, D)
            for row, index in enumerate(batch.indices):
                length = int(geometry.frames(int(batch.lens[row])))
                yield (
                    index,
                    Features(
                        found[index].id,
                        np.ascontiguousarray(values[row][..., :length, :]),
                        np.array(geometry.centres_sec(length)),
                        geometry.hop / rate_hz,
                        geometry.receptive / rate_hz,
                    ),
                )

    def _picker(self, layer: Layer) -> Callable[[Frames], Tensor]:
        """The function from Frames with all states to the states asked for."""
        if layer == -1:
            return self._last
        if layer == "all":
            return lambda frames: torch.stack([s.float() for s in self._states(frames)], dim=1)
        if layer == "mean":
            return lambda frames: torch.stack([s.float() for s in self._states(frames)]).mean(0)
        last = self.backbone.num_layers
        if isinstance(layer, bool) or not isinstance(layer, int) or not -last - 1 <= layer <= last:
            raise ConfigError(
                f"layer: got {layer!r}, expected 0 to {last} ({last} is the final output), "
                f"-1 to {-last - 1} from the end, 'all' or 'mean'"
            )
        return lambda frames: self._states(frames)[layer]

    def _states(self, frames: Frames) -> tuple[Tensor, ...]:
        return (*frames.layers[:-1], self._last(frames))

    def _last(self, frames: Frames) -> Tensor:
        before_norm = frames.unnormed if self.convention == "hf" else None
        return frames.x if before_norm is None else before_norm
