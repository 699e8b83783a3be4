"""k-means over frames: fitted on a sample that fits into memory, used on any amount of audio."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.atomic import replacing
from speechssl.errors import ConfigError, DataError
from speechssl.extract.frames import FrameSource, OnError
from speechssl.extract.shards import Shown, unseen
from speechssl.rng import generator, seed_from
from speechssl.types import Utterance

log = logging.getLogger(__name__)
FILE = "kmeans.safetensors"
_CHUNK = 8192  # rows compared with all centres at a time


@dataclass(frozen=True)
class KMeans:
    """Cluster centres (K, F) float32, and what they are centres of."""

    centers: np.ndarray
    about: dict[str, Any]  # of the FrameSource they were fitted on, seed and number of frames
    inertia: float  # mean squared distance of the sample to its centres

    @property
    def name(self) -> str:
        """Names this clustering and no other."""
        digest = hashlib.sha256(self.centers.astype("<f4").tobytes()).hexdigest()[:8]
        return f"{self.about['features']}-k{len(self.centers)}-{digest}"

    def assign(self, x: np.ndarray) -> np.ndarray:
        """The nearest centre (T,) int64 of each row of x (T, F), by squared distance."""
        if x.ndim != 2 or x.shape[1] != self.centers.shape[1]:
            raise DataError(
                f"k-means has centres of {self.centers.shape[1]} dimensions, got vectors of shape "
                f"{x.shape}"
            )
        norms = np.square(self.centers).sum(1)
        parts = [x[i : i + _CHUNK] for i in range(0, len(x), _CHUNK)]
        nearest = [(norms - 2 * part @ self.centers.T).argmin(1) for part in parts]
        return np.concatenate([*nearest, np.zeros(0, np.int64)]).astype(np.int64)

    def save(self, folder: str | Path) -> None:
        """Write kmeans.safetensors into `folder`, at once or not at all."""
        from safetensors.numpy import save

        about = {"about": json.dumps(self.about), "inertia": repr(self.inertia)}
        with replacing(Path(folder) / FILE) as temporary:
            temporary.write_bytes(save({"centers": self.centers}, about))

    @classmethod
    def load(cls, folder: str | Path) -> KMeans:
        """Read what `save` wrote. Raises DataError."""
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / FILE
        try:
            with safe_open(path, "np") as file:
                about = file.metadata() or {}
                centers = file.get_tensor("centers")
                return cls(centers, json.loads(about["about"]), float(about["inertia"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(
                f"{path}: {str(error) or type(error).__name__}; expected the clusters that "
                "`speechssl cluster --out FOLDER` writes"
            ) from error


def fit(
    source: FrameSource,
    utterances: Sequence[Utterance],
    clusters: int,
    *,
    max_frames: int,
    seed: int,
    on_error: OnError,
    shown: Shown = unseen,
) -> KMeans:
    """Mini-batch k-means as HuBERT's: k-means++, 20 starts, batches of 10,000 frames.

    Utterances are drawn until they hold `max_frames`, which bounds what is in memory.
    arXiv 2106.07447, section IV-B. Raises DataError where there are fewer frames than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    if clusters < 2:
        raise ConfigError(f"got {clusters} clusters, expected 2 or more")
    chosen = sample(utterances, source.frames_hz, max_frames, seed)
    found = dict(shown(source.stream(chosen, on_error), len(chosen), "k-means sample"))
    rows = [found[i] for i in sorted(found)]  # whatever order they came in
    frames = np.concatenate(rows)[:max_frames] if rows else np.zeros((0, 1), np.float32)
    if len(frames) < clusters:
        raise DataError(f"k-means: got {len(frames)} frames for {clusters} clusters, too few")
    if not np.isfinite(frames).all():
        raise DataError("k-means: the features hold NaN or Inf; is the model sound?")
    log.info("k-means: %d frames of %d utterances", len(frames), len(rows))
    starts: Any = 20  # typed as text in scikit-learn
    model = MiniBatchKMeans(
        clusters,
        n_init=starts,
        batch_size=10_000,
        max_no_improvement=100,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=seed_from(seed, "kmeans") % 2**32,
    ).fit(frames)
    centers = np.ascontiguousarray(model.cluster_centers_, np.float32)
    about = {**source.about, "seed": seed, "frames": len(frames)}
    fitted = KMeans(centers, about, 0.0)
    distances = np.square(frames - centers[fitted.assign(frames)]).sum(1)
    return KMeans(centers, about, float(distances.mean()))


def sample(
    utterances: Sequence[Utterance], frames_hz: float, max_frames: int, seed: int
) -> list[Utterance]:
    """Utterances in random order until they hold `max_frames` frames, at least one."""
    order = generator(seed, "kmeans sample").permutation(len(utterances))
    chosen: list[Utterance] = []
    frames = 0.0
    for index in order:
        if frames >= max_frames:
            break
        chosen.append(utterances[index])
        frames += utterances[index].seconds * frames_hz
    return chosen
