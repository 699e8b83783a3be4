"""A recording as a picture: waveform above, log-mel spectrogram below."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speechssl.atomic import replacing
from speechssl.audio.io import probe, read

WINDOW_SEC, HOP_SEC, NUM_BINS = 0.025, 0.010, 80
RANGE_DB = 80.0  # below the loudest point nothing is told apart


def plot_audio(path: str | Path, out: str | Path) -> None:
    """Draw the mean of the channels of `path`, at the file's own rate, into the picture `out`.

    Raises AudioError for a file that cannot be read.
    """
    import librosa
    import librosa.display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rate_hz = probe(path).rate_hz
    wave = read(path, rate_hz=None)
    hop, window = round(HOP_SEC * rate_hz), round(WINDOW_SEC * rate_hz)
    size = 1 << (window - 1).bit_length()
    power = librosa.feature.melspectrogram(
        y=wave,
        sr=rate_hz,
        n_fft=size,
        win_length=window,
        hop_length=hop,
        n_mels=min(NUM_BINS, size // 8),  # more would leave filters empty
    )
    level = librosa.power_to_db(power, ref=np.max, top_db=RANGE_DB)

    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    librosa.display.waveshow(wave, sr=rate_hz, ax=upper)
    upper.set(title=Path(path).name, ylabel="amplitude", xlabel="")
    mesh = librosa.display.specshow(
        level, sr=rate_hz, hop_length=hop, x_axis="time", y_axis="mel", ax=lower
    )
    lower.set(xlabel="time (s)", ylabel="frequency (Hz)")
    figure.colorbar(mesh, ax=lower, format="%+.0f dB")
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=120, format=Path(out).suffix.lstrip(".") or "png")
