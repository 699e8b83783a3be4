"""Augmentation in the data path: training only, keyed, as long as planned, with sound files."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch

from speechssl.config import cross_checks, resolve
from speechssl.data.augment import Augmenter
from speechssl.data.config import AugmentConfig, DataConfig
from speechssl.data.loader import EvalData, TrainData
from speechssl.data.tokens import Characters
from speechssl.errors import ConfigError, DataError
from speechssl.geometry import FrameGeometry
from speechssl.models.presets import BackboneConfig
from speechssl.rng import generator
from speechssl.types import Batch, Plan, Utterance

GEOMETRY = FrameGeometry(BackboneConfig().conv_kernels, BackboneConfig().conv_strides)
CFG = DataConfig(max_sec=1.5, batch_sec=3.0, update_sec=5.0, workers=0, min_sec=0.3)
SPEED = AugmentConfig(speed_prob=1.0, speed_factors=(0.8, 1.0, 1.25))
ALL = replace(SPEED, reverb_prob=0.5, noise_prob=0.5, gain_prob=0.5)
WORDS = Characters(["<pad>", "|", "A", "B"])


def plan(frame_lens, rngs, train):
    return Plan(int(frame_lens.sum()))


def flat(data: TrainData, first: int, updates: int) -> list[list[Batch]]:
    stream = data.updates(first)
    return [next(stream) for _ in range(updates)]


def waves(updates: list[list[Batch]]) -> dict[str, torch.Tensor]:
    """Waveform of each utterance that some updates of one epoch hold."""
    return {
        name: wave[:samples]
        for update in updates
        for batch in update
        for name, wave, samples in zip(batch.ids, batch.wave, batch.wave_lens.tolist(), strict=True)
    }


def epoch_waves(corpus, augment: AugmentConfig, epoch: int = 0, **options):
    data = TrainData(corpus, GEOMETRY, replace(CFG, augment=augment), plan, **options)
    return waves(flat(data, epoch * data.updates_per_epoch, data.updates_per_epoch))


def test_off_is_the_default_and_changes_nothing(corpus):
    assert not DataConfig().augment.on
    data = TrainData(corpus, GEOMETRY, CFG, plan)
    assert data.dataset.augment is None
    plain = epoch_waves(corpus, AugmentConfig())
    # Noise that is never drawn: the path through the augmenter gives the same bits.
    never = epoch_waves(corpus, AugmentConfig(noise_prob=1e-12, speed_prob=1e-12))
    assert plain.keys() == never.keys()
    assert all(torch.equal(plain[name], never[name]) for name in plain)


def test_workers_ranks_and_the_starting_step_change_nothing(corpus):
    cfg = replace(CFG, augment=ALL)
    straight = flat(TrainData(corpus, GEOMETRY, cfg, plan), 0, 9)
    resumed = flat(TrainData(corpus, GEOMETRY, replace(cfg, workers=2), plan), 4, 5)
    for a, b in zip(straight[4:], resumed, strict=True):
        assert [x.ids for x in a] == [x.ids for x in b]
        assert all(torch.equal(x.wave, y.wave) for x, y in zip(a, b, strict=True))
    ranks = [flat(TrainData(corpus, GEOMETRY, cfg, plan, rank=r, world=2), 0, 9) for r in (0, 1)]
    for step in range(9):
        alone, shared = waves([straight[step]]), waves([ranks[0][step], ranks[1][step]])
        assert alone.keys() == shared.keys()
        assert all(torch.equal(alone[name], shared[name]) for name in alone)


def test_lengths_are_those_the_planner_was_told_and_differ_by_epoch(corpus):
    data = TrainData(corpus, GEOMETRY, replace(CFG, augment=ALL), plan)
    ids = [u.id for u in data.utterances]
    epochs = []
    for epoch in range(3):
        planned = dict(zip(ids, data.dataset.lengths(epoch).tolist(), strict=True))
        heard = waves(flat(data, epoch * data.updates_per_epoch, data.updates_per_epoch))
        assert {name: len(wave) for name, wave in heard.items()} == planned
        assert max(planned.values()) <= 24000
        epochs.append(planned)
    assert epochs[0] != epochs[1]
    for step in range(3 * data.updates_per_epoch):
        lens = data.dataset.lengths(data.planner.locate(step)[0])
        for part in data.planner.micro_batches(step, 1)[0]:
            assert lens[part].max() * len(part) <= 48000


def test_a_new_epoch_draws_again(corpus):
    cfg = AugmentConfig(noise_prob=1.0)
    uncropped = [u for u in corpus if u.seconds < 1.5]
    first, second = (epoch_waves(uncropped, cfg, epoch) for epoch in (0, 1))
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_each_speed_is_drawn_about_as_often(corpus):
    augment = Augmenter(replace(SPEED, speed_prob=0.6), 16000)
    rates = [augment.reading_rate_hz(1, 0, f"u{i}") for i in range(3000)]
    assert {rate: round(rates.count(rate) / 3000, 1) for rate in set(rates)} == {
        16000: 0.6,  # not drawn, or 1.0 drawn
        20000: 0.2,
        12800: 0.2,
    }


def test_pitch_follows_speed_at_any_rate_of_the_file(tmp_path):
    sine = 0.3 * np.sin(2 * np.pi * 400 * np.arange(96000) / 48000)
    sf.write(tmp_path / "sine.wav", sine, 48000)
    utterance = Utterance("s", str(tmp_path / "sine.wav"), 96000, 48000)
    for factor in (0.8, 1.25):
        cfg = AugmentConfig(speed_prob=1.0, speed_factors=(factor,))
        wave = epoch_waves([utterance], cfg)["s"].numpy()
        assert len(wave) == 24000
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(24000), 1 << 18))
        assert spectrum.argmax() * 16000 / (1 << 18) == pytest.approx(400 * factor, rel=1e-3)


def test_transcribed_speech_is_kept_whole_and_long_enough_for_its_transcript(corpus):
    kept = [u for u in corpus if u.seconds <= 1.5]
    slow = AugmentConfig(speed_prob=1.0, speed_factors=(0.8,))
    heard = epoch_waves(kept, slow, tokenizer=WORDS)
    by_id = {u.id: u for u in kept}
    lengths = {}
    for name, wave in heard.items():
        natural, slowed = by_id[name].samples_at(16000), by_id[name].samples_at(20000)
        assert len(wave) == (slowed if slowed <= 24000 else natural)
        lengths[name] = len(wave) == slowed
    assert set(lengths.values()) == {True, False}
    # Equal letters need a blank between them: the first has no frame to spare.
    frames = [GEOMETRY.frames(u.samples_at(16000)) for u in kept[:2]]
    texts = ["A" * ((frames[0] + 1) // 2), "A"]
    tight = [replace(u, text=text) for u, text in zip(kept, texts, strict=False)]
    fast = AugmentConfig(speed_prob=1.0, speed_factors=(1.25,))
    heard = epoch_waves(tight, fast, tokenizer=WORDS)
    assert len(heard[tight[0].id]) == tight[0].samples_at(16000)
    assert len(heard[tight[1].id]) == tight[1].samples_at(12800)


def test_evaluation_hears_audio_as_it_is(corpus):
    loud = AugmentConfig(1.0, (0.8,), reverb_prob=1.0, noise_prob=1.0, gain_prob=1.0)
    plain, other = (
        list(EvalData(corpus, GEOMETRY, replace(CFG, augment=augment), plan).batches())
        for augment in (AugmentConfig(), loud)
    )
    assert [b.ids for b in plain] == [b.ids for b in other]
    assert all(torch.equal(a.wave, b.wave) for a, b in zip(plain, other, strict=True))


def test_noise_and_rooms_come_from_files(tmp_path):
    for folder in ("noise", "room"):
        (tmp_path / folder).mkdir()
    hum = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(4000) / 8000)  # shorter than the speech
    sf.write(tmp_path / "noise" / "hum.flac", hum, 8000)
    room = np.zeros((800, 2))
    room[100], room[500, 0] = 0.8, 0.4
    sf.write(tmp_path / "room" / "hall.wav", room, 16000)
    cfg = AugmentConfig(noise_prob=1.0, noise_snr_db=(10.0, 10.0))
    silence_then_click = np.zeros(16000, np.float32)
    silence_then_click[8000] = 1
    noisy = Augmenter(replace(cfg, noise_files=(str(tmp_path / "noise"),)), 16000)
    added = noisy(silence_then_click, generator(1)) - silence_then_click
    assert np.abs(np.fft.rfft(added)).argmax() == 1000
    assert (added**2).sum() == pytest.approx(0.1, rel=0.01)
    rooms = AugmentConfig(reverb_prob=1.0, reverb_files=(str(tmp_path / "room"),))
    heard = Augmenter(rooms, 16000)(silence_then_click, generator(1))
    assert heard[8400] / heard[8000] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("content", [b"", b"not sound", None])
def test_files_that_cannot_be_used_end_it_at_the_start(tmp_path, content, corpus):
    folder = tmp_path / "noise"
    folder.mkdir()
    good = folder / "good.flac"
    sf.write(good, np.random.default_rng(0).standard_normal(40000) * 0.1, 16000)
    bad = folder / "bad.flac"
    bad.write_bytes(good.read_bytes()[:20000] if content is None else content)
    cfg = replace(CFG, augment=AugmentConfig(noise_prob=0.1, noise_files=(str(folder),)))
    with pytest.raises(DataError, match=r"data\.augment\.noise_files.*bad\.flac"):
        TrainData(corpus, GEOMETRY, cfg, plan)
    with pytest.raises(DataError, match="nowhere: no such"):
        Augmenter(AugmentConfig(reverb_prob=1.0, reverb_files=("nowhere",)), 16000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_prob": 1.5}, "noise_prob is 1.5"),
        ({"noise_snr_db": (20.0, 5.0)}, "noise_snr_db is 20,5"),
        ({"gain_db": (0.0, float("inf"))}, "gain_db is 0,inf"),
        ({"speed_factors": (1.0, 0.0)}, "speed_factors"),
        ({"speed_factors": ()}, "speed_factors"),
        ({"reverb_rt60_sec": (0.0, 0.5)}, "reverb_rt60_sec begins at 0"),
        ({"noise_files": ("noise",)}, "noise_files is given, but noise_prob is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**settings)


def test_settings_come_from_the_command_line():
    words = "--objective.name wav2vec2 --run.out x --data.train t.jsonl --data.augment.noise_prob"
    config = resolve([*words.split(), "0.3", "--data.augment.noise_snr_db", "5,15"])
    assert config.data.augment == AugmentConfig(noise_prob=0.3, noise_snr_db=(5.0, 15.0))
    assert config.to_dict()["data"]["augment"]["noise_snr_db"] == [5.0, 15.0]


def test_gain_that_normalisation_undoes_is_refused():
    words = "--objective.name wav2vec2 --run.out x --data.train t.jsonl --data.augment.gain_prob 1"
    for normalize in ("true", "false"):
        config = resolve([*words.split(), "--backbone.normalize", normalize])
        if normalize == "true":
            with pytest.raises(ConfigError, match="gain_prob"):
                cross_checks(config)
        else:
            cross_checks(config)
