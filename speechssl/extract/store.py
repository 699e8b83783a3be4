"""Feature files: one .npy per shard with a JSONL index, readable by anything.

A folder holds `metadata.json` (model, checksum of its weights, layer, frame rate) and, for each
shard of the manifest, `features_00000_00004.npy` (rows are frames), `.jsonl` (one line an
utterance: id, file, offset, frames, time of the first frame) and `.done`. A shard is a fixed
stretch of the manifest, so any number of processes can write, and a stopped job goes on where it
was.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from speechssl.atomic import replacing, write_text
from speechssl.errors import DataError
from speechssl.extract.shards import (
    Shown,
    beside,
    claim,
    fingerprint,
    read_json,
    split_shards,
    unseen,
)
from speechssl.types import Utterance

if TYPE_CHECKING:
    from speechssl.data.skips import Skips
    from speechssl.extract.extractor import Extractor, Layer
    from speechssl.models.backbone import Backbone

log = logging.getLogger(__name__)
FORMAT = 1


def write_features(
    out: str | Path,
    utterances: Sequence[Utterance],
    extractor: Extractor,
    skips: Skips,
    *,
    layer: Layer = -1,
    model: str = "",
    shard_sec: float = 3600.0,
    rank: int = 0,
    world: int = 1,
    shown: Shown = unseen,
) -> int:
    """Extract features of a manifest into folder `out`; the number of utterances written now.

    Shards hold about `shard_sec` seconds of audio; process `rank` of `world` writes every
    world-th one and leaves finished ones alone. Bad audio is counted in `skips`; `shown` may draw
    a progress bar around the utterances of a shard.
    Raises ConfigError when `out` holds features of other settings.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    shards = list(split_shards(utterances, shard_sec))
    cfg, geometry = extractor.backbone.cfg, extractor.geometry
    claim(
        out,
        {
            "format": FORMAT,
            "model": model,
            "weights_sha256": weights_digest(extractor.backbone),
            "layer": layer,
            "convention": extractor.convention,
            "states": extractor.backbone.num_layers + 1 if layer == "all" else 1,
            "dim": extractor.backbone.dim,
            "frame_rate_hz": cfg.rate_hz / geometry.hop,
            "hop_sec": geometry.hop / cfg.rate_hz,
            "receptive_sec": geometry.receptive / cfg.rate_hz,
            "precision": extractor.precision,
            "num_shards": len(shards),
            "utterances": fingerprint(utterances),
        },
    )
    written = 0
    for number in range(rank, len(shards), world):
        stem = out / f"features_{number:05d}_{len(shards):05d}"
        if beside(stem, ".done").exists():
            log.info("%s is done, skipped", stem.name)
            continue
        written += _write_shard(stem, shards[number], extractor, skips, layer, shown)
    return written


class FeatureStore(Mapping[str, np.ndarray]):
    """Utterance id -> (T, D) float32 view of a memory-mapped shard; (L + 1, T, D) for layer "all".

    `metadata` is the table of metadata.json. Opening reads the index only.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.metadata = read_json(self.folder / "metadata.json")
        if self.metadata.get("format", 0) > FORMAT:
            raise DataError(f"{self.folder}: written by a newer speechssl; upgrade to read it")
        self._rows: dict[str, tuple[str, int, int, float]] = {}
        self._maps: dict[str, np.ndarray] = {}
        total, done = self.metadata["num_shards"], sorted(self.folder.glob("features_*.done"))
        if len(done) != total:
            raise DataError(
                f"{self.folder}: {len(done)} of {total} shards are finished; "
                "run the extraction again, it goes on where it stopped"
            )
        for mark in done:
            for line in beside(mark, ".jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self._rows[row["id"]] = (
                    row["file"], row["offset"], row["frames"], row["first_sec"],
                )  # fmt: skip

    def __getitem__(self, key: str) -> np.ndarray:
        file, offset, frames, _ = self._rows[key]
        if file not in self._maps:
            self._maps[file] = np.load(self.folder / file, mmap_mode="r", allow_pickle=False)
        rows = self._maps[file][offset : offset + frames]
        return rows.swapaxes(0, 1) if rows.ndim == 3 else rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def times_sec(self, key: str) -> np.ndarray:
        """(T,) centre of each frame in seconds from the start of the utterance."""
        _, _, frames, first_sec = self._rows[key]
        return first_sec + np.arange(frames) * self.metadata["hop_sec"]


def open_features(folder: str | Path) -> FeatureStore:
    """The features in `folder` by utterance id.

    Raises DataError when the folder holds none, or when its extraction has not finished.
    """
    return FeatureStore(folder)


def _write_shard(
    stem: Path,
    utterances: Sequence[Utterance],
    extractor: Extractor,
    skips: Skips,
    layer: Layer,
    shown: Shown,
) -> int:
    from speechssl.extract.sources import sources

    found = sources(utterances, None, extractor.backbone.cfg.rate_hz)
    audio = {utterance.id: utterance.audio for utterance in utterances}
    rows: dict[int, dict[str, Any]] = {}
    offset, name = 0, beside(stem, ".npy").name
    with replacing(beside(stem, ".npy")) as temporary, temporary.open("wb") as file:
        writer = None
        results = extractor.stream(
            found,
            layer,
            lambda source, error: skips.add(
                getattr(error, "kind", "unreadable"), audio[source.id], str(error)
            ),
        )
        for index, features in shown(results, len(utterances), stem.name):
            values = features.values
            values = values.swapaxes(0, 1) if values.ndim == 3 else values
            writer = writer or _NpyWriter(file, values.shape[1:])
            writer.append(values)
            rows[index] = {
                "id": features.id,
                "file": name,
                "offset": offset,
                "frames": len(values),
                "first_sec": float(features.times_sec[0]),
            }
            offset += len(values)
        (writer or _NpyWriter(file, (extractor.backbone.dim,))).close()
    # In the manifest's order, whatever the batches were.
    lines = [json.dumps(rows[index], ensure_ascii=False) + "\n" for index in sorted(rows)]
    write_text(beside(stem, ".jsonl"), "".join(lines))
    write_text(beside(stem, ".done"), "")
    return len(rows)


class _NpyWriter:
    """A float32 .npy file whose number of rows becomes known at the end.

    numpy pads the header so that the first dimension can grow in place.
    """

    def __init__(self, file: BinaryIO, row_shape: tuple[int, ...]) -> None:
        self.file, self.row_shape, self.rows = file, row_shape, 0
        self._header()
        self.start = file.tell()

    def append(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        self.rows += len(rows)

    def close(self) -> None:
        self.file.seek(0)
        self._header()
        if self.file.tell() != self.start:
            raise RuntimeError("the .npy header changed its length; the shard cannot be closed")

    def _header(self) -> None:
        shape = (self.rows, *self.row_shape)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)


def weights_digest(backbone: Backbone) -> str:
    """A fingerprint of the weights, wherever they come from: a path may hold others tomorrow."""
    digest = hashlib.sha256()
    for name, weight in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().contiguous().numpy())
    return digest.hexdigest()
