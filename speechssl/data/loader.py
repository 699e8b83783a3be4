"""From utterances to the batches of each update, through loader workers."""

from __future__ import annotations

import logging
import shlex
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from speechssl.data.augment import Augmenter
from speechssl.data.collate import Collator, PlanFn
from speechssl.data.config import DataConfig
from speechssl.data.dataset import SpeechDataset
from speechssl.data.labels import FrameLabels
from speechssl.data.planner import Planner, split
from speechssl.data.skips import Skips
from speechssl.data.tokens import Characters
from speechssl.errors import AudioError, ConfigError, DataError
from speechssl.geometry import FrameGeometry
from speechssl.types import Batch, Utterance

log = logging.getLogger(__name__)

#: Crops and masks of validation are those of this epoch, the same at every evaluation.
VALID_EPOCH = -1


@dataclass(frozen=True, slots=True)
class _Task:
    """What a worker must build: one micro-batch, and whether it ends its update."""

    epoch: int
    indices: np.ndarray
    ends_update: bool


class _Builder(Dataset):
    """Task -> (Batch, ends_update), in a worker. Unusable audio is left out and reported."""

    def __init__(self, dataset: SpeechDataset, collate: Collator) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitem__(self, task: _Task) -> tuple[Batch, bool]:  # type: ignore[override]
        examples, skipped = [], []
        for index in task.indices:
            try:
                examples.append(self.dataset.read(int(index), task.epoch))
            except AudioError as error:
                utterance = self.dataset.utterances[int(index)]
                skipped.append((error.kind, utterance.id, str(error)))
        batch = self.collate(examples, task.epoch)
        return replace(batch, skipped=tuple(skipped)), task.ends_update


class _Tasks(Sampler):
    """The tasks of one rank, lazily."""

    def __init__(self, tasks: Iterator[_Task]) -> None:
        self.tasks = tasks

    def __iter__(self) -> Iterator[_Task]:
        return self.tasks


def _quiet_worker(_: int) -> None:
    """Ctrl-C is the trainer's to handle, and one worker uses one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def _load(builder: _Builder, tasks: Iterator[_Task], workers: int) -> Iterator[tuple[Batch, bool]]:
    return iter(
        DataLoader(
            builder,
            batch_size=None,
            sampler=_Tasks(tasks),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_quiet_worker,
            timeout=300 if workers else 0,
        )
    )


def select(
    utterances: Sequence[Utterance],
    geometry: FrameGeometry,
    cfg: DataConfig,
    skips: Skips,
    *,
    tokenizer: Characters | None = None,
    speaker_index: dict[str, int] | None = None,
) -> list[Utterance]:
    """The utterances that can be trained on; every other one is counted in `skips` by kind."""
    kept = []
    for u in utterances:
        frames = geometry.frames(u.samples_at(geometry.rate_hz))
        if u.seconds < cfg.min_sec or frames < 1:
            skips.add("short", u.id, f"{u.seconds:.3f} s, expected at least {cfg.min_sec} s")
        elif speaker_index is not None and u.speaker not in speaker_index:
            skips.add("unknown_speaker", u.id, f"speaker '{u.speaker}' is not a class of the model")
        elif tokenizer is None:
            kept.append(u)
        elif u.seconds > cfg.max_sec:
            skips.add("long", u.id, f"{u.seconds:.1f} s, expected at most {cfg.max_sec} s")
        elif (problem := _text_problem(u, frames, tokenizer, cfg)) is not None:
            skips.add(problem[0], u.id, problem[1])
        else:
            kept.append(u)
    return kept


def _text_problem(
    u: Utterance, frames: int, tokenizer: Characters, cfg: DataConfig
) -> tuple[str, str] | None:
    """Why CTC cannot learn from a transcript, as (kind, message), or None.

    Raises DataError for characters not in the vocabulary where `cfg.unknown_text` says so.
    """
    if not (u.text or "").strip():
        return "no_text", f"'{u.id}' has no transcript"
    try:
        ids = tokenizer.encode(u.text or "")
    except DataError as error:
        if cfg.unknown_text == "error":
            raise DataError(f"utterance '{u.id}': {error}") from error
        return "unknown_characters", f"'{u.id}': {error}"
    needed = _ctc_frames(ids)
    if needed > frames:
        return "too_long_for_ctc", f"transcript needs {needed} frames, the audio gives {frames}"
    return None


def _ctc_frames(ids: Sequence[int]) -> int:
    """The fewest frames that CTC can align: one a token, and a blank between equal ones."""
    return len(ids) + sum(a == b for a, b in pairwise(ids))


class TrainData:
    """Batches of training updates for one rank."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        geometry: FrameGeometry,
        cfg: DataConfig,
        plan: PlanFn,
        *,
        rank: int = 0,
        world: int = 1,
        tokenizer: Characters | None = None,
        speaker_index: dict[str, int] | None = None,
        labels: FrameLabels | None = None,
        skips: Skips | None = None,
    ) -> None:
        self.cfg = cfg
        self.skips = skips if skips is not None else Skips()
        kept = select(
            utterances,
            geometry,
            cfg,
            self.skips,
            tokenizer=tokenizer,
            speaker_index=speaker_index,
        )
        if not kept:
            raise DataError(
                f"no usable utterance among {len(utterances)}: " + "; ".join(self.skips.lines())
            )
        rate = geometry.rate_hz
        changing = cfg.augment.speed_prob > 0
        if changing and labels is not None:
            raise ConfigError(
                f"data.augment.speed_prob is {cfg.augment.speed_prob:g}, but the objective reads "
                "labels for every frame, which another speed would shift; set it to 0"
            )
        self.dataset = SpeechDataset(
            kept,
            geometry,
            max_samples=int(cfg.max_sec * rate),
            seed=cfg.seed,
            channel=cfg.channel,
            reject_silence=True,
            augment=Augmenter(cfg.augment, rate) if cfg.augment.on else None,
            least_frames=[_ctc_frames(tokenizer.encode(u.text or "")) for u in kept]
            if changing and tokenizer is not None
            else None,
            labels=labels,
        )
        self.collate = Collator(
            geometry,
            plan,
            seed=cfg.seed,
            train=True,
            tokenizer=tokenizer,
            speaker_index=speaker_index,
            labels_per_frame=0 if labels is None else labels.per_frame,
        )
        self.planner = Planner(
            self.dataset.lengths(),
            int(cfg.update_sec * rate),
            int(cfg.batch_sec * rate),
            bucket_updates=cfg.bucket_updates,
            seed=cfg.seed,
            in_epoch=self.dataset.lengths if changing else None,
        )
        self.rank, self.world = rank, world
        self._unreadable: set[str] = set()  # ids; each counts once, not once an epoch

    @property
    def utterances(self) -> Sequence[Utterance]:
        """What is trained on, after selection."""
        return self.dataset.utterances

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates that see every utterance once."""
        return self.planner.updates_per_epoch

    def updates(self, first_step: int = 0) -> Iterator[list[Batch]]:
        """For each update from `first_step` on, for ever, this rank's micro-batches.

        Raises DataError when more audio is unusable than `max_bad` or `max_bad_fraction` allow.
        """
        micro: list[Batch] = []
        builder = _Builder(self.dataset, self.collate)
        for batch, ends_update in _load(builder, self._tasks(first_step), self.cfg.workers):
            for kind, where, message in batch.skipped:
                if where in self._unreadable:
                    continue
                self._unreadable.add(where)
                log.warning("skipped %s (%s): %s", where, kind, message)
                self.skips.add(kind, where, message)
                limit = max(1.0, self.cfg.max_bad_fraction * len(self.dataset))
                if len(self._unreadable) > min(self.cfg.max_bad, limit):
                    names = self.cfg.train or ("MANIFEST.jsonl",)
                    commands = "; ".join(
                        f"speechssl manifest {shlex.quote(name)} CLEAN.jsonl --full-check "
                        "--max-bad-fraction 1"
                        for name in names
                    )
                    raise DataError(
                        f"{len(self._unreadable)} of {len(self.dataset)} utterances "
                        "could not be read, more than data.max_bad or data.max_bad_fraction "
                        f"allows: {'; '.join(self.skips.lines())}; to drop them all, run: "
                        f"{commands}; then train on CLEAN.jsonl"
                    )
            micro.append(batch)
            if ends_update:
                yield micro
                micro = []

    def _tasks(self, first_step: int) -> Iterator[_Task]:
        step = first_step
        while True:
            epoch, _ = self.planner.locate(step)
            parts = self.planner.micro_batches(step, self.world)[self.rank]
            for i, part in enumerate(parts):
                yield _Task(epoch, part, i == len(parts) - 1)
            step += 1


class EvalData:
    """Every utterance once over all ranks, always in the same batches.

    Utterances are cropped to max_sec as in pre-training; transcripts and speakers need the whole.
    With a tokenizer, utterances without text, or with characters that no training text has, are
    counted in `skips`: `speechssl evaluate` scores those as written.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        geometry: FrameGeometry,
        cfg: DataConfig,
        plan: PlanFn,
        *,
        rank: int = 0,
        world: int = 1,
        tokenizer: Characters | None = None,
        speaker_index: dict[str, int] | None = None,
        labels: FrameLabels | None = None,
        skips: Skips | None = None,
    ) -> None:
        crop = tokenizer is None and speaker_index is None
        self.skips = skips if skips is not None else Skips()
        kept = []
        for u in utterances:
            frames = geometry.frames(u.samples_at(geometry.rate_hz))
            problem = None if tokenizer is None else _text_problem(u, frames, tokenizer, cfg)
            if frames < 1:
                self.skips.add("short", u.id, f"{u.seconds:.3f} s gives no frame")
            elif problem is not None and problem[0] != "too_long_for_ctc":  # that one is an error
                self.skips.add(problem[0], u.id, problem[1])
            else:
                kept.append(u)
        if not kept:
            raise DataError(
                f"none of {len(utterances)} utterances can be evaluated: "
                + "; ".join(self.skips.lines())
            )
        self._unreadable: set[str] = set()
        self.dataset = SpeechDataset(
            kept,
            geometry,
            max_samples=int(cfg.max_sec * geometry.rate_hz) if crop else None,
            seed=cfg.seed,
            channel=cfg.channel,
            labels=labels,
        )
        self.collate = Collator(
            geometry,
            plan,
            seed=cfg.seed,
            train=False,
            tokenizer=tokenizer,
            speaker_index=speaker_index,
            labels_per_frame=0 if labels is None else labels.per_frame,
        )
        self.cfg = cfg
        lengths = self.dataset.lengths()
        order = np.argsort(-lengths, kind="stable")
        cap = max(int(cfg.batch_sec * geometry.rate_hz), int(lengths.max()))
        self._parts = split(order, lengths, cap, world)[rank]

    @property
    def utterances(self) -> Sequence[Utterance]:
        """What is evaluated."""
        return self.dataset.utterances

    def __len__(self) -> int:
        return len(self._parts)

    def batches(self) -> Iterator[Batch]:
        """Batches of one rank, equally many on every rank; audio that cannot be read is counted."""
        tasks = (_Task(VALID_EPOCH, part, True) for part in self._parts)
        for batch, _ in _load(_Builder(self.dataset, self.collate), tasks, self.cfg.workers):
            for kind, where, message in batch.skipped:
                if where not in self._unreadable:
                    self._unreadable.add(where)
                    log.warning("skipped %s (%s): %s", where, kind, message)
                    self.skips.add(kind, where, message)
            yield batch
