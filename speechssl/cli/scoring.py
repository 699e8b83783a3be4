"""Running a model over utterances for `evaluate` and `predict`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from speechssl.cli.inputs import bar
from speechssl.errors import DataError
from speechssl.evaluation import wer
from speechssl.extract.sources import Source, padded_batches, sources
from speechssl.extract.transcribe import Transcriber, Transcript
from speechssl.models.backbone import Backbone
from speechssl.types import Batch, Utterance

if TYPE_CHECKING:
    from speechssl.data.skips import Skips
    from speechssl.downstream.speaker import Speaker
    from speechssl.extract.lexicon import LanguageModel
    from speechssl.models.bundle import Bundle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpeakerAnswer:
    """The likeliest speaker of an utterance and the vector that compares by cosine."""

    name: str
    probability: float
    embedding: np.ndarray  # (E,) float32


@dataclass(frozen=True)
class Tuned:
    """Weights of a language model and the word error rate they gave."""

    lm: LanguageModel
    wer: float


def batches(
    backbone: Backbone,
    utterances: Sequence[Utterance],
    batch_sec: float,
    skips: Skips,
    device: str | torch.device,
) -> Iterator[tuple[list[int], Batch]]:
    """(places in `utterances`, whole utterances padded on `device`), shortest first.

    Audio that cannot be used is counted in `skips`.
    """
    found = sources(utterances, None, backbone.cfg.rate_hz)
    for waves in padded_batches(found, backbone.geometry, batch_sec, _counted(skips)):
        ids = [found[i].id for i in waves.indices]
        frames = torch.as_tensor(backbone.geometry.frames(waves.lens))
        batch = Batch(ids, waves.wave, waves.lens, frames, num_targets=len(ids))
        yield waves.indices, batch.to(device)


def transcribe_all(
    bundle: Bundle,
    utterances: Sequence[Utterance],
    beam: int,
    lms: Sequence[LanguageModel],
    batch_sec: float,
    skips: Skips,
    policy: str = "raw",
) -> tuple[dict[int, Transcript], list[Tuned]]:
    """Place in `utterances` -> transcript; audio that cannot be used is counted in `skips`.

    Of several language models (one with several weights) the one with the fewest word errors on
    the texts of `utterances`, compared by `policy`, is taken; the list holds all, best first.
    Ids may come twice here, in two folders of the same layout; places do not.
    """
    assert bundle.objective is not None
    device = next(bundle.objective.parameters()).device
    found = sources(utterances, None, bundle.backbone.cfg.rate_hz)

    def transcriber(lm: LanguageModel | None) -> Transcriber:
        return Transcriber(bundle, device, batch_sec, beam, lm)

    model = transcriber(lms[0] if lms else None)
    if model.lexicon and model.lexicon.left_out:
        log.warning(
            "%d words of %s cannot be spelt with the model's characters and are never answered",
            model.lexicon.left_out,
            lms[0].path,
        )
    if len(lms) < 2:
        return dict(bar(model.stream(found, _counted(skips)), len(found), "transcribe")), []
    emissions = dict(bar(model.emissions(found, _counted(skips)), len(found), "emissions"))
    tuned = []
    for lm in bar(lms, len(lms), "weights"):
        model = transcriber(lm)
        answers = {place: model.text(scores) for place, scores in emissions.items()}
        report = wer.score(
            {str(i): u.text or "" for i, u in enumerate(utterances)},
            {str(i): answers.get(i, "") for i in range(len(utterances))},
            policy=policy,
        )
        tuned.append(Tuned(lm, report.words.rate))
    tuned.sort(key=lambda one: one.wer)
    model = transcriber(tuned[0].lm)
    return {i: model.transcript(found[i].id, row) for i, row in emissions.items()}, tuned


@torch.no_grad()
def speaker_answers(
    bundle: Bundle, utterances: Sequence[Utterance], batch_sec: float, skips: Skips
) -> dict[int, SpeakerAnswer]:
    """Place in `utterances` -> answer of a speaker model; as `transcribe_all`."""
    model: Speaker = bundle.objective  # type: ignore[assignment]
    model.eval()
    answers: dict[int, SpeakerAnswer] = {}
    device = next(model.parameters()).device
    for places, batch in batches(bundle.backbone, utterances, batch_sec, skips, device):
        vectors = model.embed(batch)  # (B, E)
        best = torch.softmax(model.logits(vectors), 1).max(1)
        for i, place in enumerate(places):
            answers[place] = SpeakerAnswer(
                model.classes[int(best.indices[i])],
                float(best.values[i]),
                vectors[i].float().cpu().numpy(),
            )
    return answers


def _counted(skips: Skips) -> Callable[[Source, DataError], None]:
    """What to do with unusable audio: count it."""
    return lambda source, error: skips.add(
        getattr(error, "kind", "unreadable"), source.id, str(error)
    )
