"""Frame labels on disk: a class number for every stretch of an utterance, as `cluster` makes them.

A manifest line names its labels as `FILE#ROW`, FILE relative to the manifest. A file holds many
utterances: `labels` (all rows on end), `ends` (where each row ends), and in its header which
clustering they are of, how many classes that has, and how many labels a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from speechssl.atomic import replacing
from speechssl.errors import DataError
from speechssl.geometry import FrameGeometry
from speechssl.types import Utterance

_NO_LABELS = (
    "make some: speechssl cluster MANIFEST.jsonl --out DIR, then train on DIR/MANIFEST.jsonl"
)


@dataclass(frozen=True)
class LabelFacts:
    """What the labels of a file are."""

    clustering: str  # names the k-means model; labels of two models never mix
    clusters: int  # labels are 0 to clusters - 1
    rate_hz: float  # labels a second
    first_sec: float  # middle of the stretch that label 0 is about

    @property
    def names(self) -> tuple[str, ...]:
        """A name for every label that no other clustering has."""
        return tuple(f"{self.clustering}/{k}" for k in range(self.clusters))


def write_labels(path: str | Path, rows: Sequence[np.ndarray], facts: LabelFacts) -> None:
    """Write the labels (T,) of several utterances as one file, at once or not at all."""
    from safetensors.numpy import save

    width = np.uint16 if facts.clusters <= 1 << 16 else np.int32
    labels = np.concatenate([*rows, np.zeros(0, width)]).astype(width)
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    about = {key: str(value) for key, value in asdict(facts).items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save({"labels": labels, "ends": ends}, about))


class LabelFile:
    """One file of labels; rows are read when asked for."""

    def __init__(self, path: str | Path) -> None:
        """Raises DataError for a file that is missing, damaged, or not one of labels."""
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        try:
            self._file = safe_open(self.path, "np")
            about = self._file.metadata() or {}
            self.facts = LabelFacts(
                about["clustering"],
                int(about["clusters"]),
                float(about["rate_hz"]),
                float(about["first_sec"]),
            )
            self._ends = self._file.get_tensor("ends")
            self._labels = self._file.get_slice("labels")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(
                f"labels {path}: {str(error) or type(error).__name__}; expected a file that "
                "`speechssl cluster` wrote; run it again"
            ) from error

    def __len__(self) -> int:
        return len(self._ends)

    def row(self, number: int, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Labels `first` to `stop` of an utterance, fewer where it ends before: int64."""
        begin = int(self._ends[number - 1]) if number else 0
        end = int(self._ends[number])
        last = end if stop is None else min(end, begin + stop)
        if begin + first >= last:
            return np.zeros(0, np.int64)
        return self._labels[begin + first : last].astype(np.int64)

    def length(self, number: int) -> int:
        """How many labels an utterance has."""
        return int(self._ends[number] - (self._ends[number - 1] if number else 0))


def place_of(utterance: Utterance) -> tuple[str, int]:
    """The (file, row) that an utterance's `labels` name. Raises DataError where it has none."""
    if utterance.labels is None:
        raise DataError(f"utterance '{utterance.id}' has no labels; {_NO_LABELS}")
    path, _, row = utterance.labels.rpartition("#")
    if not path or not row.isdecimal():
        raise DataError(
            f"utterance '{utterance.id}': labels are '{utterance.labels}', expected FILE#ROW; "
            f"{_NO_LABELS}"
        )
    return path, int(row)


def label_facts(utterances: Sequence[Utterance]) -> LabelFacts:
    """What the labels of a manifest are, by its first utterance. Raises DataError without any."""
    if not utterances:
        raise DataError(f"no utterances to read labels of; {_NO_LABELS}")
    return LabelFile(place_of(utterances[0])[0]).facts


class FrameLabels:
    """Labels of the frames of a network, `per_frame` for each, whatever the labels' own rate.

    Frame i of a network with `hop` samples a frame begins at sample hop * i; its labels are those
    of the moments hop * (i + q / per_frame), q = 0 .. per_frame - 1, rounded down (so 100 labels a
    second and 50 frames give frame i label 2 i). Where a track ends less than a frame early, its
    last label goes on.
    """

    def __init__(
        self, utterances: Sequence[Utterance], geometry: FrameGeometry, per_frame: int = 1
    ) -> None:
        """Raises DataError where labels are missing, of two clusterings, or fewer than wanted."""
        self.geometry, self.per_frame = geometry, per_frame
        self._files: dict[str, LabelFile] = {}
        first: tuple[str, LabelFacts] | None = None
        for utterance in utterances:
            path, row = place_of(utterance)
            known = path in self._files
            file = self._file(path)
            if row >= len(file):
                raise DataError(
                    f"utterance '{utterance.id}': row {row} of {path}, which has {len(file)}; "
                    f"manifest and labels belong to different runs; {_NO_LABELS}"
                )
            first = first or (path, file.facts)
            if not known and file.facts != first[1]:
                raise DataError(
                    f"labels {path} are of clustering {file.facts.clustering}, those of {first[0]} "
                    f"of {first[1].clustering}: the same number means different things; label all "
                    "manifests in one call of `speechssl cluster`, or the second with --kmeans"
                )
        if first is None:
            raise DataError(f"no utterances to read labels of; {_NO_LABELS}")
        self.facts = first[1]
        self._labels_a_frame = self.facts.rate_hz * geometry.hop / geometry.rate_hz
        if self._labels_a_frame < per_frame * (1 - 1e-6):
            raise DataError(
                f"labels of clustering {self.facts.clustering} come {self.facts.rate_hz:g} a "
                f"second, frames {geometry.rate_hz / geometry.hop:g}: got "
                f"{self._labels_a_frame:.3g} a frame, expected at least {per_frame} "
                "(objective.labels_per_frame)"
            )
        self._files = {}  # each loader worker opens its own

    def read(self, utterance: Utterance, first_frame: int, frames: int) -> np.ndarray:
        """Labels (frames, per_frame) int64 from `first_frame` on.

        Raises DataError where the labels end a frame or more before the audio.
        """
        path, row = place_of(utterance)
        moments = first_frame + np.arange(frames * self.per_frame) / self.per_frame
        wanted = np.floor(moments * self._labels_a_frame + 1e-6).astype(np.int64)
        file = self._file(path)
        length = file.length(row)
        if frames and wanted[-1] - (length - 1) > math.ceil(self._labels_a_frame):
            raise DataError(
                f"utterance '{utterance.id}': {length} labels in {path}, label {wanted[-1]} is "
                f"wanted; they were made of other or shorter audio; {_NO_LABELS}"
            )
        wanted = np.minimum(wanted, length - 1)
        begin = int(wanted[0]) if frames else 0
        track = file.row(row, begin, int(wanted[-1]) + 1 if frames else 0)
        return track[wanted - begin].reshape(frames, self.per_frame)

    def _file(self, path: str) -> LabelFile:
        if path not in self._files:
            self._files[path] = LabelFile(path)
        return self._files[path]
