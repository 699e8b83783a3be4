"""Examples to one Batch: padding, targets, and the objective's random decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from speechssl.data.dataset import Example
from speechssl.data.tokens import Characters
from speechssl.geometry import FrameGeometry
from speechssl.rng import generator, seed_from
from speechssl.types import Batch, Plan

PlanFn = Callable[[np.ndarray, Sequence[np.random.Generator], bool], Plan]


class Collator:
    """Builds batches in loader workers; everything random is keyed by (seed, epoch, utterance)."""

    def __init__(
        self,
        geometry: FrameGeometry,
        plan: PlanFn,
        *,
        seed: int,
        train: bool,
        tokenizer: Characters | None = None,
        speaker_index: dict[str, int] | None = None,
        labels_per_frame: int = 0,
    ) -> None:
        self.geometry = geometry
        self.plan = plan
        self.seed = seed
        self.train = train
        self.tokenizer = tokenizer
        self.speaker_index = speaker_index
        self.labels_per_frame = labels_per_frame  # what examples bring; 0: none

    def __call__(self, examples: Sequence[Example], epoch: int) -> Batch:
        """One padded micro-batch; no examples give a filler."""
        if not examples:
            return self.filler()
        lens = np.array([len(e.wave) for e in examples], np.int64)
        wave = torch.zeros(len(examples), int(lens.max()))
        for row, example in enumerate(examples):
            wave[row, : lens[row]] = torch.from_numpy(example.wave)
        ids = [e.utterance.id for e in examples]
        frame_lens = self.geometry.frames(lens)
        rngs = [generator(self.seed, epoch, name, "plan") for name in ids]
        plan = self.plan(frame_lens, rngs, self.train)
        batch = Batch(
            ids=ids,
            wave=wave,
            wave_lens=torch.from_numpy(lens),
            frame_lens=torch.from_numpy(frame_lens),
            num_targets=plan.num_targets,
            seeds=tuple(seed_from(self.seed, epoch, name, "noise") for name in ids),
            mask=_tensor(plan.mask),
            channel_mask=_tensor(plan.channel_mask),
            negatives=_tensor(plan.negatives),
            views=_tensor(plan.views),
            mixing=_tensor(plan.mixing),
            replacement=_tensor(plan.replacement),
            band=_tensor(plan.band),
        )
        if self.labels_per_frame:
            batch.labels = _padded([e.labels for e in examples], self.labels_per_frame)
        if self.tokenizer is not None:
            batch.tokens, batch.token_lens = self._tokens(examples)
        if self.speaker_index is not None:
            # A speaker never seen in training is -1: embeddings can be scored, classes cannot.
            index = [self.speaker_index.get(e.utterance.speaker or "", -1) for e in examples]
            batch.speakers = torch.tensor(index)
        return batch

    def filler(self) -> Batch:
        """One second of silence that weighs nothing, for a rank that has no utterance left."""
        samples = self.geometry.rate_hz
        lens = np.array([samples], np.int64)
        frames = self.geometry.frames(lens)
        plan = self.plan(frames, [generator(self.seed, "filler")], self.train)
        batch = Batch(
            ids=[],
            wave=torch.zeros(1, samples),
            wave_lens=torch.from_numpy(lens),
            frame_lens=torch.from_numpy(frames),
            num_targets=0,
            seeds=(0,),
            mask=_tensor(plan.mask),
            channel_mask=_tensor(plan.channel_mask),
            negatives=_tensor(plan.negatives),
            views=_tensor(plan.views),
            mixing=_tensor(plan.mixing),
            replacement=_tensor(plan.replacement),
            band=_tensor(plan.band),
        )
        if self.labels_per_frame:
            nothing = np.zeros((int(frames[0]), self.labels_per_frame), np.int64)
            batch = replace(batch, labels=_padded([nothing], self.labels_per_frame))
        if self.tokenizer is not None:
            batch = replace(batch, tokens=torch.ones(1, 1).long(), token_lens=torch.ones(1).long())
        if self.speaker_index is not None:
            batch = replace(batch, speakers=torch.zeros(1).long())
        return batch

    def _tokens(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.tokenizer is not None
        encoded = [self.tokenizer.encode(e.utterance.text or "") for e in examples]
        tokens = torch.zeros(len(encoded), max(1, max(map(len, encoded))), dtype=torch.long)
        for row, ids in enumerate(encoded):
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        return tokens, torch.tensor([len(ids) for ids in encoded])


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)


def _padded(tracks: Sequence[np.ndarray | None], per_frame: int) -> torch.Tensor:
    """Labels (B, T, per_frame) of tracks (T, per_frame), -100 where there is no frame."""
    known = [track for track in tracks if track is not None]
    if len(known) < len(tracks):  # a loss would pass over frames of -100 in silence
        raise ValueError(f"{len(tracks) - len(known)} of {len(tracks)} examples have no labels")
    labels = torch.full((len(known), max(map(len, known)), per_frame), -100)
    for row, track in zip(labels, known, strict=True):
        row[: len(track)] = torch.from_numpy(track)
    return labels
