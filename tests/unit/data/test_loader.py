"""From audio files to updates: lengths, keyed decisions, workers, ranks, unusable audio."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from speechssl.data.config import DataConfig
from speechssl.data.loader import EvalData, TrainData
from speechssl.data.skips import Skips
from speechssl.data.tokens import Characters
from speechssl.errors import ConfigError, DataError
from speechssl.geometry import FrameGeometry
from speechssl.models.presets import BackboneConfig
from speechssl.objectives.wav2vec2 import Wav2Vec2
from speechssl.types import Batch, Utterance

GEOMETRY = FrameGeometry(BackboneConfig().conv_kernels, BackboneConfig().conv_strides)
CFG = DataConfig(max_sec=1.5, batch_sec=3.0, update_sec=5.0, workers=0, min_sec=0.3)


def plan(frame_lens, rngs, train):
    return Wav2Vec2.plan(Wav2Vec2.Config(num_negatives=5), 8, frame_lens, rngs, train)


def flat(data: TrainData, first: int, updates: int) -> list[list[Batch]]:
    stream = data.updates(first)
    return [next(stream) for _ in range(updates)]


def same(a: Batch, b: Batch) -> bool:
    fields = ("wave", "wave_lens", "frame_lens", "mask", "negatives")
    return (
        a.ids == b.ids
        and a.seeds == b.seeds
        and a.num_targets == b.num_targets
        and all(torch.equal(getattr(a, f), getattr(b, f)) for f in fields)
    )


def test_lengths_are_exact_at_any_rate_and_padding_is_zero(corpus):
    data = TrainData(corpus, GEOMETRY, CFG, plan)
    by_id = {u.id: u for u in corpus}
    for update in flat(data, 0, data.updates_per_epoch):
        for batch in update:
            for name, wave, samples in zip(
                batch.ids, batch.wave, batch.wave_lens.tolist(), strict=True
            ):
                assert samples == min(by_id[name].samples_at(16000), 24000)
                assert wave[samples:].abs().sum() == 0
                assert wave[:samples].abs().sum() > 0
            assert torch.equal(batch.frame_lens, GEOMETRY.frames(batch.wave_lens))
            assert batch.num_targets == int(batch.mask.sum())


def test_workers_and_the_starting_step_change_nothing(corpus):
    straight = flat(TrainData(corpus, GEOMETRY, CFG, plan), 0, 9)
    worker_cfg = DataConfig(**{**CFG.__dict__, "workers": 2})
    resumed = flat(TrainData(corpus, GEOMETRY, worker_cfg, plan), 4, 5)
    for a, b in zip(straight[4:], resumed, strict=True):
        assert len(a) == len(b)
        assert all(same(x, y) for x, y in zip(a, b, strict=True))


def test_ranks_share_an_update_without_overlap_and_with_the_same_decisions(corpus):
    alone = flat(TrainData(corpus, GEOMETRY, CFG, plan), 0, 4)
    ranks = [flat(TrainData(corpus, GEOMETRY, CFG, plan, rank=r, world=2), 0, 4) for r in (0, 1)]
    for step in range(4):
        one = {i: (b, n) for b in alone[step] for n, i in enumerate(b.ids)}
        two = [b for rank in ranks for b in rank[step]]
        assert sorted(one) == sorted(i for b in two for i in b.ids)
        assert len(ranks[0][step]) == len(ranks[1][step])
        for b in two:
            for n, i in enumerate(b.ids):
                ref, row = one[i]
                frames = int(b.frame_lens[n])
                assert torch.equal(b.mask[n, :frames], ref.mask[row, :frames])
                assert b.seeds[n] == ref.seeds[row]
        targets = sum(b.num_targets for b in two)
        assert targets == sum(b.num_targets for b in alone[step])


def test_crops_move_between_epochs_and_start_on_the_frame_grid(tmp_path):
    ramp = (np.arange(80000) / 80000).astype(np.float32)
    sf.write(tmp_path / "ramp.wav", ramp, 16000, subtype="FLOAT")
    data = TrainData(
        [Utterance("r", str(tmp_path / "ramp.wav"), 80000, 16000)], GEOMETRY, CFG, plan
    )
    starts = [round(float(u[0].wave[0, 0]) * 80000) for u in flat(data, 0, 6)]
    assert all(start % 320 == 0 for start in starts)
    assert len(set(starts)) > 3


def test_a_crop_in_a_pause_gives_way_to_one_with_speech(tmp_path):
    wave = np.zeros(16000 * 12)
    wave[100_000:101_000] = np.random.default_rng(0).standard_normal(1000) * 0.1
    sf.write(tmp_path / "pauses.wav", wave, 16000)
    pauses = Utterance("p", str(tmp_path / "pauses.wav"), len(wave), 16000)
    data = TrainData([pauses], GEOMETRY, CFG, plan)
    batches = [batch for update in flat(data, 0, 12) for batch in update]
    assert data.skips.total == 0
    assert all(float(batch.wave.abs().max()) > 0.1 for batch in batches)
    again = TrainData([pauses], GEOMETRY, CFG, plan)
    repeated = [batch for update in flat(again, 0, 12) for batch in update]
    assert all(same(a, b) for a, b in zip(batches, repeated, strict=True))


def test_unusable_audio_is_skipped_counted_and_limited(corpus, tmp_path, caplog):
    Path(corpus[0].audio).write_bytes(b"")
    silent = Path(corpus[3].audio)
    sf.write(silent, np.zeros(corpus[3].num_samples), corpus[3].rate_hz)
    cfg = DataConfig(**{**CFG.__dict__, "max_bad_fraction": 0.5})
    data = TrainData(corpus, GEOMETRY, cfg, plan)
    seen = [i for u in flat(data, 0, data.updates_per_epoch) for b in u for i in b.ids]
    assert sorted(seen) == sorted(u.id for u in corpus if u.id not in {"u0", "u3"})
    assert data.skips.counts["silent"] == 1
    assert data.skips.total == 2
    assert corpus[0].audio in caplog.text
    flat(data, data.updates_per_epoch, 9 * data.updates_per_epoch)
    assert data.skips.total == 2  # not two more every epoch: long runs would end
    strict = DataConfig(**{**CFG.__dict__, "max_bad_fraction": 0.0, "max_bad": 1})
    data = TrainData(corpus, GEOMETRY, strict, plan)
    with pytest.raises(DataError, match=r"data\.max_bad"):
        flat(data, 0, 2 * data.updates_per_epoch)


def test_selection_counts_every_reason(corpus):
    words = Characters(["<pad>", "|", "A", "B"])
    skips = Skips()
    second = {u.rate_hz: replace(u, num_samples=u.rate_hz // 2) for u in corpus}[16000]
    utterances = [
        replace(second, id="u0"),
        replace(second, id="tiny", num_samples=100),
        replace(second, id="mute", text=None),
        replace(second, id="foreign", text="AÉ"),
        replace(second, id="dense", text="AA" * 200),
        replace(second, id="endless", num_samples=16000 * 60),
    ]
    data = TrainData(utterances, GEOMETRY, CFG, plan, tokenizer=words, skips=skips)
    assert [u.id for u in data.utterances] == ["u0"]
    assert dict(skips.counts) == {
        "short": 1,
        "no_text": 1,
        "unknown_characters": 1,
        "too_long_for_ctc": 1,
        "long": 1,
    }
    (batch,) = next(data.updates())
    assert batch.tokens.tolist() == [[2, 3, 1, 3, 2]]
    strict = DataConfig(**{**CFG.__dict__, "unknown_text": "error"})
    with pytest.raises(DataError, match="foreign"):
        TrainData(utterances, GEOMETRY, strict, plan, tokenizer=words)


def test_nothing_usable_is_an_error_with_reasons(corpus):
    with pytest.raises(DataError, match="short"):
        TrainData([replace(corpus[0], num_samples=10)], GEOMETRY, CFG, plan)


def test_evaluation_sees_everything_once_and_whole(corpus):
    speakers = {f"s{i}": i for i in range(3)}  # s3 is unknown
    seen = []
    for rank in (0, 1):
        data = EvalData(corpus, GEOMETRY, CFG, plan, rank=rank, world=2, speaker_index=speakers)
        for batch in data.batches():
            seen += list(
                zip(batch.ids, batch.wave_lens.tolist(), batch.speakers.tolist(), strict=True)
            )
    by_id = {u.id: u for u in corpus}
    assert sorted(i for i, _, _ in seen) == sorted(by_id)
    for name, samples, speaker in seen:
        assert samples == by_id[name].samples_at(16000)
        assert speaker == speakers.get(by_id[name].speaker, -1)


def test_evaluation_ranks_run_equally_many_batches(corpus):
    sizes = {
        len(list(EvalData(corpus[:3], GEOMETRY, CFG, plan, rank=r, world=2).batches()))
        for r in (0, 1)
    }
    assert len(sizes) == 1


def test_contradicting_settings_are_refused():
    with pytest.raises(ConfigError, match="batch_sec"):
        DataConfig(max_sec=20, batch_sec=10)
    with pytest.raises(ConfigError, match="update_sec"):
        DataConfig(max_sec=20, batch_sec=40, update_sec=10)


def test_validation_leaves_out_and_counts_what_ctc_cannot_score(corpus):
    words = Characters(["<pad>", "|", "A", "B"])
    utterances = [
        corpus[0],
        replace(corpus[1], text=None),
        replace(corpus[2], text="AÉ"),
        replace(corpus[3], text="AA" * 200),  # too long for its frames: an error, but scored
    ]
    data = EvalData(utterances, GEOMETRY, CFG, plan, tokenizer=words)
    assert [u.id for u in data.utterances] == ["u0", "u3"]
    assert dict(data.skips.counts) == {"no_text": 1, "unknown_characters": 1}
    assert sorted(i for b in data.batches() for i in b.ids) == ["u0", "u3"]
    strict = DataConfig(**{**CFG.__dict__, "unknown_text": "error"})
    with pytest.raises(DataError, match="utterance 'u2'"):
        EvalData(utterances, GEOMETRY, strict, plan, tokenizer=words)
    with pytest.raises(DataError, match="no_text: 1"):
        EvalData(utterances[1:2], GEOMETRY, CFG, plan, tokenizer=words)
