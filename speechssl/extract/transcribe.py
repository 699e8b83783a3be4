"""Text of any audio by a CTC model, with the time of every word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from speechssl.audio.backend import forced_align
from speechssl.downstream.ctc import CTC
from speechssl.downstream.decode import BLANK, Hypothesis, collapse, decode, spell
from speechssl.errors import ConfigError, DataError
from speechssl.extract.lexicon import LanguageModel, LexiconDecoder
from speechssl.extract.sources import Audio, Source, padded_batches, sources
from speechssl.geometry import FrameGeometry
from speechssl.models.bundle import Bundle, load
from speechssl.types import Batch

_WORD_BAR = "|"


@dataclass(frozen=True)
class Word:
    """A word and where it was said. `confidence` is the mean probability of its characters."""

    text: str
    start_sec: float
    end_sec: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """What was said in one piece of audio."""

    id: str
    text: str
    words: tuple[Word, ...]


class Transcriber:
    """Runs a CTC model over audio in padded batches; results do not depend on the batching.

    `beam` 1 takes the best path, more searches prefixes; with `lm`, the search is over the words of
    a language model. The other arguments are the Extractor's.
    Raises ConfigError when the model has no CTC head, or as `LexiconDecoder`.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        device: str | torch.device | None = None,
        batch_sec: float = 60.0,
        beam: int = 1,
        lm: LanguageModel | None = None,
    ) -> None:
        bundle = bundle if isinstance(bundle, Bundle) else load(bundle)
        if not isinstance(bundle.objective, CTC):
            head = bundle.config.get("speechssl", {}).get("objective") or {"name": "none"}
            raise ConfigError(
                f"model {bundle.folder} has no CTC head (objective: {head['name']}); fine-tune it "
                "first: speechssl train with objective.name ctc"
            )
        if beam < 1:
            raise ConfigError(f"beam: got {beam}, expected at least 1")
        self.model = bundle.objective.to(device).eval()
        self.classes = self.model.classes
        self.device = next(self.model.parameters()).device
        self.batch_sec, self.beam = batch_sec, beam
        self.lexicon = LexiconDecoder(lm, self.classes, beam) if lm else None

    def __call__(self, audio: Sequence[Audio], *, rate_hz: int | None = None) -> list[Transcript]:
        """The transcript of each of `audio` (paths, (S,) arrays, manifest utterances), in order.

        `rate_hz` is the sample rate of the arrays (required with arrays). Audio shorter than one
        frame is padded with zeros to one frame.
        Raises AudioError for audio that cannot be used, ConfigError for wrong arguments.
        """
        found = sources(audio, rate_hz, self.model.backbone.cfg.rate_hz)
        results: list[Transcript | None] = [None] * len(found)
        for index, transcript in self.stream(found):
            results[index] = transcript
        return [transcript for transcript in results if transcript is not None]

    def stream(
        self,
        found: Sequence[Source],
        on_error: Callable[[Source, DataError], None] | None = None,
    ) -> Iterator[tuple[int, Transcript]]:
        """(index into `found`, transcript) batch by batch, shortest first.

        With `on_error`, unreadable sources are handed to it and skipped; otherwise they raise.
        """
        for index, log_probs in self.emissions(found, on_error):
            yield index, self.transcript(found[index].id, log_probs)

    @torch.no_grad()
    def emissions(
        self,
        found: Sequence[Source],
        on_error: Callable[[Source, DataError], None] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """(index into `found`, log-probabilities of the classes (T, V)); otherwise as `stream`."""
        geometry = self.model.backbone.geometry
        for waves in padded_batches(found, geometry, self.batch_sec, on_error):
            ids = [found[i].id for i in waves.indices]
            frames = torch.as_tensor(geometry.frames(waves.lens))
            batch = Batch(ids, waves.wave, waves.lens, frames, num_targets=len(ids))
            log_probs, lens = self.model.log_probs(batch.to(self.device))
            for index, row, size in zip(waves.indices, log_probs.cpu(), lens.tolist(), strict=True):
                yield index, row[:size]

    def best(self, log_probs: Tensor) -> Hypothesis:
        """What the search finds in log-probabilities (T, V)."""
        lens = torch.tensor([len(log_probs)])
        search = self.lexicon or (lambda rows, lens: decode(rows, lens, self.beam))
        return search(log_probs[None], lens)[0]

    def text(self, log_probs: Tensor) -> str:
        """The text of log-probabilities (T, V)."""
        return spell(self.best(log_probs).ids, self.classes)

    def transcript(self, name: str, log_probs: Tensor) -> Transcript:
        """The transcript of log-probabilities (T, V)."""
        best = self.best(log_probs)
        # Path scores of the best path are exact; the sequence of a search has to be aligned.
        greedy = self.beam == 1 and self.lexicon is None
        path = log_probs.argmax(-1) if greedy else align(log_probs, best.ids)
        words = word_times(path, log_probs, self.classes, self.model.backbone.geometry)
        return Transcript(name, spell(best.ids, self.classes), words)


def transcribe(
    audio: Sequence[Audio],
    model: Bundle | str | Path,
    *,
    rate_hz: int | None = None,
    device: str | torch.device | None = None,
    beam: int = 1,
    lm: LanguageModel | None = None,
) -> list[Transcript]:
    """Transcripts of `audio` by a CTC `model`: one call around `Transcriber`."""
    return Transcriber(model, device, beam=beam, lm=lm)(audio, rate_hz=rate_hz)


def align(log_probs: Tensor, ids: Sequence[int]) -> Tensor:
    """The best path (T,) through log_probs (T, V) that spells the token `ids`."""
    return forced_align(log_probs, torch.tensor(ids, dtype=torch.long), BLANK)[0]


def word_times(
    path: Tensor, log_probs: Tensor, classes: Sequence[str], geometry: FrameGeometry
) -> tuple[Word, ...]:
    """The words on a CTC path (T,) of token ids, with their times in seconds.

    A word lasts from the first frame of its first character to the last frame of its last one,
    each frame standing for one hop around the centre of what it sees.
    """
    tokens, firsts = collapse(path.numpy())
    probs = log_probs.gather(1, path[:, None])[:, 0].exp()  # (T,)
    words: list[Word] = []
    spans: list[tuple[str, int, int]] = []  # character, first frame, frame after its last one

    def close() -> None:
        if spans:
            confidence = sum(float(probs[a:b].mean()) for _, a, b in spans) / len(spans)
            text = "".join(character for character, _, _ in spans)
            start, end = edge_sec(spans[0][1]), edge_sec(spans[-1][2])
            words.append(Word(text, start, end, confidence))
            spans.clear()

    def edge_sec(frame: int) -> float:
        samples = frame * geometry.hop + (geometry.receptive - geometry.hop) / 2
        return samples / geometry.rate_hz

    for token, first in zip(tokens.tolist(), firsts.tolist(), strict=True):
        character = classes[int(token)]
        if character == _WORD_BAR:
            close()
            continue
        changes = (path[first:] != token).nonzero()
        after = first + int(changes[0]) if len(changes) else len(path)
        spans.append((character, first, after))
    close()
    return tuple(words)
