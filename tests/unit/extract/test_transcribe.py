from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import speechssl
from speechssl.downstream.ctc import CTC
from speechssl.errors import ConfigError
from speechssl.extract.transcribe import Transcriber, align, word_times
from speechssl.geometry import FrameGeometry
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import Bundle, save_bundle
from speechssl.models.presets import preset

CLASSES = ("<pad>", "|", "A", "B")
GEOMETRY = FrameGeometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))


def model() -> CTC:
    torch.manual_seed(2)
    cfg = preset("tiny", conv_dims=(8,) * 7, dim=16, layers=1, heads=2, ffn=24, pos_kernel=8)
    ctc = CTC(Backbone(cfg), CTC.Config(), CLASSES)
    with torch.no_grad():
        ctc.lm_head.weight.mul_(8)  # decided enough to say something
    return ctc.eval()


def bundle(ctc: CTC) -> Bundle:
    return Bundle(ctc.backbone, ctc, {}, CLASSES, Path("memory"))


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def log_probs(path: list[int], confidence: float = 0.97) -> torch.Tensor:
    probs = torch.full((len(path), len(CLASSES)), (1 - confidence) / (len(CLASSES) - 1))
    probs[torch.arange(len(path)), torch.tensor(path)] = confidence
    return probs.log()


def test_word_times_span_first_to_last_character():
    path = [0, 2, 2, 0, 3, 0, 1, 1, 0, 3, 3]
    words = word_times(torch.tensor(path), log_probs(path), CLASSES, GEOMETRY)
    assert [w.text for w in words] == ["AB", "B"]
    first, second = words
    # Frame i is centred at 0.02 i + 0.0125 s and stands for 20 ms.
    assert (first.start_sec, first.end_sec) == pytest.approx((0.0225, 0.1025))
    assert (second.start_sec, second.end_sec) == pytest.approx((0.1825, 0.2225))
    assert first.confidence == pytest.approx(0.97)


def test_repeated_letters_and_bars_at_the_edges():
    path = [1, 2, 0, 2, 1, 1, 0, 1]
    words = word_times(torch.tensor(path), log_probs(path), CLASSES, GEOMETRY)
    assert [w.text for w in words] == ["AA"]
    assert word_times(torch.tensor([0, 0, 1]), log_probs([0, 0, 1]), CLASSES, GEOMETRY) == ()


def test_alignment_of_the_best_path_is_the_best_path():
    path = [0, 2, 0, 0, 3, 3, 1, 0, 2]
    assert align(log_probs(path), (2, 3, 1, 2)).tolist() == path
    assert align(log_probs([0, 0]), ()).tolist() == [0, 0]


@pytest.mark.parametrize("beam", [1, 4])
def test_transcripts_do_not_depend_on_the_batching(beam: int):
    ctc = model()
    waves = [noise(n, seed=n) for n in (16000, 300, 9000, 12000)]
    together = Transcriber(bundle(ctc), beam=beam)(waves, rate_hz=16000)
    alone = Transcriber(bundle(ctc), beam=beam, batch_sec=0.1)(waves, rate_hz=16000)
    assert [t.id for t in together] == ["0", "1", "2", "3"]
    assert any(t.words for t in together)
    for a, b in zip(together, alone, strict=True):
        assert a.text == b.text == " ".join(w.text for w in a.words)
        for first, second in zip(a.words, b.words, strict=True):
            assert (first.start_sec, first.end_sec) == (second.start_sec, second.end_sec)
            assert first.confidence == pytest.approx(second.confidence, abs=1e-4)
            assert 0 <= first.start_sec < first.end_sec
            assert 0 < first.confidence <= 1


def test_transcribe_reads_a_folder(tmp_path: Path):
    ctc = model()
    save_bundle(tmp_path / "model", ctc, card={})
    expected = Transcriber(bundle(ctc))([noise(8000)], rate_hz=16000)
    assert speechssl.transcribe([noise(8000)], tmp_path / "model", rate_hz=16000) == expected


def test_a_model_without_head_is_refused(tmp_path: Path):
    save_bundle(tmp_path / "model", model().backbone, card={})
    with pytest.raises(ConfigError, match=r"no CTC head \(objective: none\)"):
        Transcriber(tmp_path / "model")
    with pytest.raises(ConfigError, match="beam: got 0"):
        Transcriber(bundle(model()), beam=0)
