"""Frame labels of whole manifests: one clustering for all of them, in shards, with a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechssl.atomic import write_text
from speechssl.data.labels import LabelFacts, LabelFile, place_of, write_labels
from speechssl.data.manifest import read_manifest, write_manifest
from speechssl.errors import DataError
from speechssl.evaluation import units
from speechssl.extract.frames import FrameSource
from speechssl.extract.kmeans import KMeans
from speechssl.extract.shards import Shown, beside, split_shards, unseen
from speechssl.types import Utterance

if TYPE_CHECKING:
    from speechssl.data.skips import Skips

log = logging.getLogger(__name__)
#: Labels of which one cluster takes more, or whose perplexity is a smaller share of the clusters,
#: teach nothing.
MOST_IN_ONE, LEAST_SPREAD = 0.5, 0.1
_WAIT_SEC = 0.5


def label_utterances(
    stem: Path,
    utterances: Sequence[Utterance],
    kmeans: KMeans,
    source: FrameSource,
    skips: Skips,
    *,
    shard_sec: float = 36_000.0,
    rank: int = 0,
    world: int = 1,
    shown: Shown = unseen,
) -> list[Utterance]:
    """Write label files that begin with `stem`; rank 0 gets the utterances with their labels.

    Shards hold about `shard_sec` seconds; process `rank` of `world` makes every world-th one and
    leaves finished ones alone. Utterances that cannot be read are counted in `skips` and left out.
    Rank 0 waits for the others, which get an empty list.
    """
    shards = list(split_shards(utterances, shard_sec))
    stems = [stem.with_name(f"{stem.name}_{i:05d}_{len(shards):05d}") for i in range(len(shards))]
    facts = LabelFacts(kmeans.name, len(kmeans.centers), source.frames_hz, source.first_sec)
    for number in range(rank, len(shards), world):
        if beside(stems[number], ".done").exists():
            log.info("%s is done, skipped", stems[number].name)
        else:
            _write_shard(stems[number], shards[number], kmeans, source, facts, skips, shown)
    if rank:
        return []
    wait_for([beside(shard, ".done") for shard in stems])
    return [u for shard in stems for u in read_manifest(beside(shard, ".part"))]


def _write_shard(
    stem: Path,
    utterances: Sequence[Utterance],
    kmeans: KMeans,
    source: FrameSource,
    facts: LabelFacts,
    skips: Skips,
    shown: Shown,
) -> None:
    found: dict[int, np.ndarray] = {}
    audio = {utterance.id: utterance.audio for utterance in utterances}
    stream = source.stream(
        utterances,
        lambda one, error: skips.add(
            getattr(error, "kind", "unreadable"), audio[one.id], str(error)
        ),
    )
    for index, vectors in shown(stream, len(utterances), stem.name):
        found[index] = kmeans.assign(vectors)
    if not found:
        raise DataError(f"{stem.name}: no utterance could be read: " + "; ".join(skips.lines()))
    kept = sorted(found)
    path = beside(stem, ".labels")
    write_labels(path, [found[i] for i in kept], facts)
    rows = [replace(utterances[i], labels=f"{path}#{row}") for row, i in enumerate(kept)]
    write_manifest(beside(stem, ".part"), rows)
    write_text(beside(stem, ".done"), "")


def wait_for(files: Sequence[Path]) -> None:
    """Return when all of `files` are there; other processes write them."""
    told = time.monotonic()
    while missing := [path for path in files if not path.exists()]:
        if time.monotonic() - told > 60:
            told = time.monotonic()
            log.info("waiting for %s (%d more)", missing[0], len(missing) - 1)
        time.sleep(_WAIT_SEC)


def report(utterances: Sequence[Utterance]) -> dict[str, Any]:
    """What the labels of a manifest are like: their use, and what they tell.

    Beside the numbers of `units.usage` those of `units.quality` with phones, words and speakers,
    where the manifest has them: `phones` and `words` are lists of [name, from, to] in seconds.
    """
    files: dict[str, LabelFile] = {}
    joints: dict[str, units.Joint] = {}
    counts, changes = np.zeros(0, np.int64), 0
    facts: LabelFacts | None = None
    for utterance in utterances:
        path, row = place_of(utterance)
        if path not in files:
            files[path] = LabelFile(path)
        facts, track = files[path].facts, files[path].row(row)
        if not len(counts):
            counts = np.zeros(facts.clusters, np.int64)
        counts += np.bincount(track, minlength=facts.clusters)
        changes += int((np.diff(track) != 0).sum()) + 1
        times = facts.first_sec + np.arange(len(track)) / facts.rate_hz
        for kind in ("phones", "words"):
            if spans := utterance.extra.get(kind):
                joint = joints.setdefault(kind, units.Joint(facts.clusters))
                joint.add(track, units.names_at(spans, times))
        if utterance.speaker is not None:
            joint = joints.setdefault("speakers", units.Joint(facts.clusters))
            joint.add(track, [utterance.speaker] * len(track))
    assert facts is not None
    used = units.usage(counts, facts.rate_hz, changes)
    told = {kind: units.quality(joint.table()) for kind, joint in joints.items()}
    return {
        "clustering": facts.clustering,
        "clusters": facts.clusters,
        "labels_hz": facts.rate_hz,
        **used,
        **{kind: numbers for kind, numbers in told.items() if numbers},
    }


def reject_degenerate(found: dict[str, Any]) -> None:
    """Raise DataError where labels with this `report` would teach nothing."""
    clusters = found["clusters"]
    if found["top_share"] > MOST_IN_ONE or found["perplexity"] < LEAST_SPREAD * clusters:
        raise DataError(
            f"labels are degenerate: {found['top_share']:.0%} of frames are in one of {clusters} "
            f"clusters, perplexity {found['perplexity']:.3g} (expected at most {MOST_IN_ONE:.0%} "
            f"and at least {LEAST_SPREAD * clusters:.3g}); a network would learn to name that one. "
            "Look for digital silence (speechssl manifest --full-check), take fewer --clusters, "
            "another --layer, or --norm utterance"
        )
