"""WavLM: HuBERT's task where another voice sometimes speaks over the one that is labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from speechssl.errors import ConfigError
from speechssl.objectives.hubert import Hubert
from speechssl.types import Batch, Loss, Plan, Sum


class WavLM(Hubert):
    """HuBERT's loss on partly overlapped speech (arXiv 2110.13900, sec. III-B, algorithm 1).

    The labels stay those of the clean utterance. The gated relative positions of the paper are the
    backbone's: `attention_positions: gated_relative`, as in the preset `wavlm-base`. Differs: only
    utterances are mixed in, for noise is `data.augment`'s; never one into itself, so that of a
    micro-batch of one utterance nothing is mixed; which other one it is depends on the micro-batch,
    everything else about a mixture does not; all powers are those before any mixing; what is mixed
    into a longer utterance is at most as long as its own source. At evaluation nothing is mixed.
    """

    @dataclass(frozen=True)
    class Config(Hubert.Config):
        """Defaults are the base set-up of the paper."""

        mix_prob: float = 0.2  # of an utterance to be spoken over
        mix_ratio_db: tuple[float, float] = (-5.0, 5.0)  # of its power to that of the other

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.0 <= self.mix_prob <= 1.0:
                raise ConfigError(f"objective.mix_prob: got {self.mix_prob:g}, expected 0 to 1")
            low, high = self.mix_ratio_db
            if low > high:
                raise ConfigError(
                    f"objective.mix_ratio_db: got {low:g} to {high:g}, expected the lower one first"
                )

    needs: ClassVar = Hubert.needs | {"mixing"}

    @staticmethod
    def plan(
        cfg: Any,
        dim: int,
        frame_lens: np.ndarray,
        rngs: Sequence[np.random.Generator],
        train: bool,
    ) -> Plan:
        """HuBERT's masks, then what is mixed into which row; see `draw_mixing`."""
        plan = Hubert.plan(cfg, dim, frame_lens, rngs, train)
        prob = cfg.mix_prob if train else 0.0
        return replace(plan, mixing=draw_mixing(prob, cfg.mix_ratio_db, rngs))

    def forward(self, batch: Batch) -> Loss:
        """HuBERT's loss of the mixed waveforms; mixed_frac is the share of the rows mixed."""
        if batch.mixing is None:
            raise ValueError("wavlm needs a batch with mixing; see Objective.plan_fn")
        loss = super().forward(replace(batch, wave=mix(batch.wave, batch.wave_lens, batch.mixing)))
        rows = torch.tensor(len(batch.wave), device=batch.wave.device)
        loss.logs["mixed_frac"] = Sum((batch.mixing[:, 0] >= 0).sum(), rows)
        return loss


def draw_mixing(
    prob: float, ratio_db: tuple[float, float], rngs: Sequence[np.random.Generator]
) -> np.ndarray:
    """What is mixed into each row, (B, 5) float32.

    Columns: the row that is mixed in, -1 for none; the ratio in dB, evenly from `ratio_db`; and,
    evenly from 0 to 1, the length as a share of half the row, and where it begins in the row and in
    the other one, as shares of the places where it fits.
    """
    draws = np.stack([rng.random(7) for rng in rngs])
    chosen, ticket, wish, ratio = draws[:, 0] < prob, draws[:, 1], draws[:, 2], draws[:, 3]
    # The other row is the one whose ticket comes next after the wish, round in a circle: an even
    # choice that does not depend on the order of the rows.
    behind = (ticket[None, :] - wish[:, None]) % 1.0  # (B, B)
    np.fill_diagonal(behind, np.inf)
    other = np.where(chosen & (len(rngs) > 1), behind.argmin(1), -1)
    low, high = ratio_db
    columns = [other, low + (high - low) * ratio, *draws[:, 4:].T]
    return np.stack(columns, axis=1).astype(np.float32)


def mix(wave: Tensor, lens: Tensor, mixing: Tensor) -> Tensor:
    """`wave` (B, S), `lens` (B,) samples, with parts of other rows added as `mixing` (B, 5) says.

    What is added comes from the rows as they were given, mixed themselves or not, scaled so that
    the powers of both rows over all of their valid samples have the ratio. Silence has none: a
    silent row adds nothing and gets nothing.
    """
    there = mixing[:, 0] >= 0
    other = mixing[:, 0].long().clamp(min=0)
    ratio_db, length_share, into_share, from_share = mixing[:, 1:].unbind(1)
    length = torch.minimum(_place(length_share, lens // 2), lens[other])
    into = _place(into_share, lens - length)
    source = _place(from_share, lens[other] - length)
    power = wave.square().sum(1) / lens.clamp(min=1)
    wanted = power / 10 ** (ratio_db / 10)
    scale = torch.where(power[other] > 0, wanted / power[other], 0.0).sqrt()
    at = torch.arange(wave.shape[1], device=wave.device)[None, :] - into[:, None]  # (B, S)
    inside = there[:, None] & (at >= 0) & (at < length[:, None])
    places = (source[:, None] + at).clamp(0, wave.shape[1] - 1)
    added = wave[other].gather(1, places) * scale[:, None].to(wave.dtype)
    return torch.where(inside, wave + added, wave)


def _place(share: Tensor, last: Tensor) -> Tensor:
    """Whole numbers from 0 to `last`, evenly, for even shares from 0 to 1."""
    return torch.minimum((share * (last + 1)).long(), last)
