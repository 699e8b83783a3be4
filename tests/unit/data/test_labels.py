"""Frame labels: files, and which label is whose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from speechssl.data.collate import Collator
from speechssl.data.config import AugmentConfig, DataConfig
from speechssl.data.dataset import SpeechDataset
from speechssl.data.labels import FrameLabels, LabelFacts, LabelFile, write_labels
from speechssl.data.loader import TrainData
from speechssl.data.manifest import read_manifest, write_manifest
from speechssl.errors import ConfigError, DataError
from speechssl.geometry import FrameGeometry
from speechssl.types import Plan, Utterance
from tests.reference import hubert_ref

CNN = FrameGeometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))  # 50 frames a second
SLOW = FrameGeometry((400, 2, 2), (160, 2, 2))  # 25
FACTS = LabelFacts("mfcc39-k500-0123abcd", 500, 100.0, 0.0125)


def labelled(folder: Path, seconds: list[float], facts: LabelFacts = FACTS) -> list[Utterance]:
    """Noises with labels that count up from their start: label j of utterance u is 100 u + j."""
    found, rows = [], []
    for i, length in enumerate(seconds):
        samples = round(length * 16000)
        path = folder / f"{facts.clustering}_{i}.wav"
        sf.write(path, np.random.default_rng(i).standard_normal(samples) * 0.1, 16000)
        count = (samples - 400) // 160 + 1
        rows.append((100 * i + np.arange(count)) % facts.clusters)
        place = f"{folder}/{facts.clustering}.labels#{i}"
        found.append(Utterance(f"u{i}", str(path), samples, 16000, labels=place))
    write_labels(folder / f"{facts.clustering}.labels", rows, facts)
    return found


def test_rows_come_back_whole_and_in_part(tmp_path: Path):
    labelled(tmp_path, [1.0, 0.5])
    file = LabelFile(tmp_path / f"{FACTS.clustering}.labels")
    assert file.facts == FACTS
    assert (len(file), file.length(0), file.length(1)) == (2, 98, 48)
    assert file.row(1).tolist() == list(range(100, 148))
    assert file.row(0, 95, 200).tolist() == [95, 96, 97]
    assert file.row(1, 60, 70).tolist() == []


def test_a_file_of_something_else_is_named(tmp_path: Path):
    path = tmp_path / "x.labels"
    with pytest.raises(DataError, match=r"x\.labels.*run it again"):
        LabelFile(path)
    path.write_bytes(b"not labels")
    with pytest.raises(DataError, match=r"x\.labels.*speechssl cluster"):
        LabelFile(path)


@pytest.mark.parametrize(("geometry", "parts"), [(CNN, 1), (CNN, 2), (SLOW, 1), (SLOW, 4)])
def test_a_frame_has_the_labels_that_begin_in_it(tmp_path: Path, geometry, parts):
    [utterance] = labelled(tmp_path, [2.0])
    labels = FrameLabels([utterance], geometry, parts)
    count = geometry.frames(utterance.num_samples)
    got = labels.read(utterance, 0, count)
    assert got.shape == (count, parts)
    for frame in range(count):
        for part in range(parts):
            wanted = hubert_ref.label_index(frame, part, parts, geometry.hop, 16000, 100.0)
            assert got[frame, part] == min(wanted, 197)
    assert np.array_equal(labels.read(utterance, 7, 20), got[7:27])
    if geometry is CNN and parts == 1:
        assert got[:5, 0].tolist() == [0, 2, 4, 6, 8]  # label 2 i for 100 a second


def test_crops_and_batches_carry_the_labels_of_their_frames(tmp_path: Path):
    utterances = labelled(tmp_path, [3.0, 1.0])
    labels = FrameLabels(utterances, CNN, 2)
    data = SpeechDataset(utterances, CNN, max_samples=24000, seed=1, labels=labels)
    starts = set()
    for epoch in range(6):
        example = data.read(0, epoch)
        assert example.labels is not None
        first = int(example.labels[0, 0])
        whole, _ = sf.read(utterances[0].audio, dtype="float32")
        np.testing.assert_array_equal(example.wave, whole[160 * first : 160 * first + 24000])
        assert example.labels.shape == (CNN.frames(24000), 2)
        starts.add(first)
    assert len(starts) > 1
    collate = Collator(
        CNN, lambda lens, rngs, train: Plan(1), seed=1, train=True, labels_per_frame=2
    )
    batch = collate([data.read(0, 0), data.read(1, 0)], 0)
    assert batch.labels is not None
    assert batch.labels.shape == (2, int(batch.frame_lens.max()), 2)
    short = int(batch.frame_lens[1])
    assert (batch.labels[1, :short] >= 100).all()
    assert (batch.labels[1, short:] == -100).all()
    with pytest.raises(ValueError, match="1 of 2 examples have no labels"):
        collate([data.read(0, 0), replace(data.read(1, 0), labels=None)], 0)
    filler = collate([], 0)
    assert filler.labels is not None
    assert filler.labels.shape == (1, 49, 2)


def test_labels_of_two_clusterings_never_mix(tmp_path: Path):
    ours = labelled(tmp_path, [1.0])
    theirs = labelled(tmp_path, [1.0], replace(FACTS, clustering="mfcc39-k500-ffffffff"))
    other = replace(theirs[0], id="other")
    with pytest.raises(DataError, match=r"ffffffff.*0123abcd.*label all manifests in one call"):
        FrameLabels([*ours, other], CNN)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labels": None}, "'u0' has no labels; make some: speechssl cluster"),
        ({"labels": "12 3 4"}, "expected FILE#ROW"),
        ({"labels": "{}#7"}, "row 7 of .* which has 1"),
    ],
)
def test_manifest_lines_without_usable_labels_are_named(tmp_path: Path, change, told):
    [utterance] = labelled(tmp_path, [1.0])
    path = utterance.labels.rpartition("#")[0] if utterance.labels else ""
    change = {k: v and v.format(path) for k, v in change.items()}
    with pytest.raises(DataError, match=told):
        FrameLabels([replace(utterance, **change)], CNN)


def test_labels_of_other_audio_are_an_error_not_a_shift(tmp_path: Path):
    [utterance] = labelled(tmp_path, [1.0])
    longer = replace(utterance, num_samples=24000)
    labels = FrameLabels([longer], CNN)
    with pytest.raises(DataError, match="'u0': 98 labels .* other or shorter audio"):
        labels.read(longer, 0, CNN.frames(24000))


def test_labels_too_slow_for_the_frames_are_refused(tmp_path: Path):
    utterances = labelled(tmp_path, [1.0], replace(FACTS, rate_hz=25.0))
    with pytest.raises(DataError, match=r"0\.5 a frame, expected at least 1"):
        FrameLabels(utterances, CNN)
    FrameLabels(utterances, SLOW)


def test_manifests_carry_labels_relative_to_themselves(tmp_path: Path):
    (tmp_path / "a").mkdir()
    utterances = labelled(tmp_path / "a", [1.0])
    write_manifest(tmp_path / "a" / "m.jsonl", utterances)
    (tmp_path / "a").rename(tmp_path / "b")
    [moved] = read_manifest(tmp_path / "b" / "m.jsonl")
    assert moved.labels == f"{tmp_path}/b/{FACTS.clustering}.labels#0"
    assert FrameLabels([moved], CNN).read(moved, 0, 2).tolist() == [[0], [2]]


def test_another_speed_would_shift_labels(tmp_path: Path):
    utterances = labelled(tmp_path, [1.0, 1.0])
    faster = AugmentConfig(speed_prob=1.0)
    cfg = DataConfig(max_sec=1, batch_sec=2, update_sec=2, workers=0, augment=faster)
    labels = FrameLabels(utterances, CNN)
    with pytest.raises(ConfigError, match="labels for every frame"):
        TrainData(utterances, CNN, cfg, lambda lens, rngs, train: Plan(1), labels=labels)
    cfg = replace(cfg, augment=AugmentConfig(noise_prob=1.0))
    TrainData(utterances, CNN, cfg, lambda lens, rngs, train: Plan(1), labels=labels)
