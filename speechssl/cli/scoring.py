"""Running a model over utterances for `evaluate` and `predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from speechssl.cli.inputs import bar
from speechssl.errors import DataError
from speechssl.extract.sources import Source, padded_batches, sources
from speechssl.extract.transcribe import Transcriber, Transcript
from speechssl.models.backbone import Backbone
from speechssl.types import Batch, Utterance

if TYPE_CHECKING:
    from speechssl.data.skips import Skips
    from speechssl.downstream.speaker import Speaker
    from speechssl.models.bundle import Bundle


@dataclass(frozen=True)
class SpeakerAnswer:
    """The likeliest speaker of an utterance and the vector that compares by cosine."""

    name: str
    probability: float
    embedding: np.ndarray  # (E,) float32


def batches(
    backbone: Backbone,
    utterances: Sequence[Utterance],
    batch_sec: float,
    skips: Skips,
    device: str | torch.device,
) -> Iterator[Batch]:
    """Whole utterances in padded batches on `device`, shortest first.

    Audio that cannot be used is counted in `skips`.
    """

    def left_out(source: Source, error: DataError) -> None:
        skips.add(getattr(error, "kind", "unreadable"), source.id, str(error))

    found = sources(utterances, None, backbone.cfg.rate_hz)
    for waves in padded_batches(found, backbone.geometry, batch_sec, left_out):
        ids = [found[i].id for i in waves.indices]
        frames = torch.as_tensor(backbone.geometry.frames(waves.lens))
        yield Batch(ids, waves.wave, waves.lens, frames, num_targets=len(ids)).to(device)


def transcribe_all(
    bundle: Bundle, utterances: Sequence[Utterance], beam: int, batch_sec: float, skips: Skips
) -> dict[str, Transcript]:
    """Utterance id -> transcript; audio that cannot be used is counted in `skips`."""
    assert bundle.objective is not None
    device = next(bundle.objective.parameters()).device
    model = Transcriber(bundle, device, batch_sec, beam)
    found = sources(utterances, None, bundle.backbone.cfg.rate_hz)

    def left_out(source: Source, error: DataError) -> None:
        skips.add(getattr(error, "kind", "unreadable"), source.id, str(error))

    stream = bar(model.stream(found, left_out), len(found), "transcribe")
    return {found[index].id: transcript for index, transcript in stream}


@torch.no_grad()
def speaker_answers(
    bundle: Bundle, utterances: Sequence[Utterance], batch_sec: float, skips: Skips
) -> dict[str, SpeakerAnswer]:
    """Utterance id -> answer of a speaker model; unusable audio is counted in `skips`."""
    model: Speaker = bundle.objective  # type: ignore[assignment]
    model.eval()
    answers: dict[str, SpeakerAnswer] = {}
    device = next(model.parameters()).device
    for batch in batches(bundle.backbone, utterances, batch_sec, skips, device):
        vectors = model.embed(batch)  # (B, E)
        best = torch.softmax(model.logits(vectors), 1).max(1)
        for i, name in enumerate(batch.ids):
            answers[name] = SpeakerAnswer(
                model.classes[int(best.indices[i])],
                float(best.values[i]),
                vectors[i].float().cpu().numpy(),
            )
    return answers
