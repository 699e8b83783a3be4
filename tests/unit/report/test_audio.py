"""Pictures of recordings."""

import json

import numpy as np
import pytest

from speechssl.audio.io import write
from speechssl.cli.main import main


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
def test_show_plots_a_recording(tmp_path, capsys, rate_hz):
    seconds = np.arange(rate_hz // 2) / rate_hz
    write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * seconds), rate_hz)
    words = ["show", str(tmp_path / "a.wav"), "--plot", str(tmp_path / "a.png"), "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["seconds"], facts["level"]) == (0.5, "-9.0 dBFS")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
