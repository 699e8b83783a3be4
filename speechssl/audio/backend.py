"""The only importer of torchaudio, which is frozen at 2.11: whoever replaces it edits this file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torchaudio.models import Wav2Vec2Model
    from torchaudio.models.decoder import CTCDecoder

# Kaldi's defaults are meant for 16-bit samples: its floor of 1.2e-7 would flatten quiet speech
# scaled to [-1, 1].
_INT16 = 32_768.0


def kaldi_fbank(wave: Tensor, *, num_bins: int = 80, rate_hz: int = 16_000) -> Tensor:
    """Log-mel energies as Kaldi's compute-fbank-feats, without dither.

    `wave` (S,) float in [-1, 1] -> (T, num_bins), natural log, Povey window of 25 ms every 10 ms,
    T = 1 + floor((S - 400) / 160) at 16 kHz.
    """
    from torchaudio.compliance import kaldi

    return kaldi.fbank(
        wave[None] * _INT16, num_mel_bins=num_bins, sample_frequency=rate_hz, dither=0.0
    )


def kaldi_mfcc(wave: Tensor, *, num_ceps: int = 13, rate_hz: int = 16_000) -> Tensor:
    """Mel cepstra as Kaldi's compute-mfcc-feats, without dither and with C0 instead of energy.

    `wave` (S,) float in [-1, 1] -> (T, num_ceps); 23 mel bins, frames as in `kaldi_fbank`.
    """
    from torchaudio.compliance import kaldi

    return kaldi.mfcc(
        wave[None] * _INT16,
        num_ceps=num_ceps,
        sample_frequency=rate_hz,
        use_energy=False,
        dither=0.0,
    )


def deltas(features: Tensor) -> Tensor:
    """Slopes over 5 frames of `features` (T, D) -> (T, D), edges repeated."""
    from torchaudio.functional import compute_deltas

    return compute_deltas(features.T).T


def forced_align(log_probs: Tensor, tokens: Tensor, blank: int = 0) -> tuple[Tensor, Tensor]:
    """Best CTC path of `tokens` (L,) through `log_probs` (T, V).

    Returns the token of every frame (T,) int, `blank` included, and its log-probability (T,).
    Raises ValueError when the tokens (plus one blank per repetition) do not fit into T frames.
    """
    import torch
    from torchaudio.functional import forced_align as align

    repeats = int((tokens[1:] == tokens[:-1]).sum())
    if len(tokens) + repeats > len(log_probs):
        raise ValueError(
            f"{len(tokens)} tokens with {repeats} repetitions need {len(tokens) + repeats} frames, "
            f"got {len(log_probs)}"
        )
    if len(tokens) == 0:
        path = torch.full((len(log_probs),), blank, dtype=torch.long, device=log_probs.device)
        return path, log_probs[:, blank]
    path, scores = align(log_probs[None].float().contiguous(), tokens[None].long(), blank=blank)
    return path[0].long(), scores[0]


def lexicon_decoder(
    lexicon: str,
    tokens: Sequence[str],
    lm: str,
    *,
    blank: str,
    bar: str,
    beam: int,
    lm_weight: float,
    word_score: float,
) -> CTCDecoder:
    """Flashlight's CTC beam search over the words of a lexicon file, with a KenLM language model.

    `lm_weight` is for log10 probabilities. Raises ImportError where the package flashlight-text is
    not installed, RuntimeError for a file that KenLM cannot read.
    """
    from torchaudio.models.decoder import ctc_decoder

    with _silent_stderr():
        return ctc_decoder(
            lexicon=lexicon,
            tokens=list(tokens),
            lm=lm,
            beam_size=beam,
            lm_weight=lm_weight,
            word_score=word_score,
            log_add=True,
            blank_token=blank,
            sil_token=bar,
            unk_word="<unk>",
        )


def wav2vec2_network(**sizes: Any) -> Wav2Vec2Model:
    """Torchaudio's own network; arguments of its `wav2vec2_model`, or of `wavlm_model`.

    The latter where there is an `encoder_num_buckets`.
    """
    from torchaudio.models import wav2vec2_model, wavlm_model

    return (wavlm_model if "encoder_num_buckets" in sizes else wav2vec2_model)(**sizes)


def pretrained_network(name: str) -> tuple[Wav2Vec2Model, bool, tuple[str, ...]]:
    """A bundle of torchaudio.pipelines by its name, downloaded or from torch.hub's cache.

    Returns the network, whether it wants a normalised waveform, and the classes of a CTC head with
    the blank first as `<pad>`. Raises KeyError for a name that is no such bundle, OSError where it
    can be neither found nor downloaded.
    """
    from torchaudio import pipelines
    from torchaudio.pipelines import Wav2Vec2ASRBundle, Wav2Vec2Bundle

    bundle = getattr(pipelines, name, None)
    if not isinstance(bundle, Wav2Vec2Bundle):
        known = [n for n in dir(pipelines) if isinstance(getattr(pipelines, n), Wav2Vec2Bundle)]
        raise KeyError(", ".join(known))
    network: Any = bundle.get_model()
    labels: tuple[str, ...] = ()
    if isinstance(bundle, Wav2Vec2ASRBundle):
        labels = tuple(bundle.get_labels(blank="<pad>"))
    # One that normalises is wrapped.
    normalised = bool(getattr(network, "normalize_waveform", False))
    return getattr(network, "model", network), normalised, labels


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """KenLM draws a bar of its own with every file it loads; what goes wrong it raises."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
