"""A small corpus at several rates, for everything between a manifest and a batch."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from speechssl.types import Utterance


@pytest.fixture
def corpus(tmp_path: Path) -> list[Utterance]:
    """14 noises of half a second to two and a half, at 16, 8 and 48 kHz, by four speakers."""
    rng = np.random.default_rng(0)
    utterances = []
    for i in range(14):
        rate = (16000, 8000, 48000)[i % 3]
        samples = int(rate * rng.uniform(0.5, 2.5))
        path = tmp_path / f"{i}.wav"
        sf.write(path, rng.standard_normal(samples) * 0.1, rate)
        utterances.append(
            Utterance(f"u{i}", str(path), samples, rate, text="AB BA", speaker=f"s{i % 4}")
        )
    return utterances
