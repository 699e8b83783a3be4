"""wav2vec (v1): tell the true future frame from frames of elsewhere in the utterance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.objectives.base import Objective
from speechssl.objectives.health import health, moments
from speechssl.types import Batch, Loss, Plan, Sum


class StepPredictor(nn.Module):
    """One matrix per step ahead and one bias for all: c (B, T, D) -> (B, T, K, C)."""

    def __init__(self, dim: int, channels: int, num_steps: int) -> None:
        super().__init__()
        self.shape = (num_steps, channels)
        self.weight = nn.Parameter(torch.empty(num_steps * channels, dim))
        self.bias = nn.Parameter(torch.empty(channels))
        # The original's initialisation, whose fan counts the steps: scores begin near zero.
        bound = 1.0 / math.sqrt(num_steps * channels)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, c: Tensor) -> Tensor:
        """Predictions of the frames ahead of each frame."""
        predicted = F.linear(c, self.weight).unflatten(-1, self.shape)
        return predicted + self.bias.to(predicted.dtype)


class Wav2Vec(Objective):
    """Noise-contrastive prediction of the next K local features (arXiv 1904.05862, section 2.2).

    Context c_t scores z_{t + offset + i} for i = 0..K-1 against N frames z of the same utterance
    by dot product; both sides learn. The loss is a sum over scored frames (targets) of the binary
    cross entropies of 1 positive and N negatives: (N + 1) ln 2 where all scores are zero.

    Differs: only valid frames are scored, and a negative is never the positive's own frame (the
    original's released code lets 1 in T through).
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of wav2vec.

        offset_frames: distance to the first predicted frame; None takes the receptive field in
        frames, rounded up, so that prediction and target share no sample.
        loss: `nce` is binary (the paper), `infonce` a softmax over positive and negatives.
        balanced: weight each negative 1 / num_negatives (`nce` only).
        """

        num_steps: int = 12
        num_negatives: int = 10
        offset_frames: int | None = None
        loss: Literal["nce", "infonce"] = "nce"
        balanced: bool = False

        def __post_init__(self) -> None:
            for name in ("num_steps", "num_negatives"):
                if getattr(self, name) < 1:
                    raise ConfigError(
                        f"objective.{name}: got {getattr(self, name)}, expected at least 1"
                    )
            if self.offset_frames is not None and self.offset_frames < 1:
                raise ConfigError(
                    f"objective.offset_frames: got {self.offset_frames}, expected at least 1 "
                    "(0 would predict a frame from itself)"
                )
            if self.balanced and self.loss == "infonce":
                raise ConfigError(
                    "objective.balanced: got true with loss 'infonce', which has no class "
                    "weights; drop balanced or use loss 'nce'"
                )

    needs: ClassVar[frozenset[str]] = frozenset({"negatives"})
    best_metric = (("contrastive", False),)

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        if cfg.offset_frames is None:
            cfg = replace(cfg, offset_frames=backbone.geometry.apart)
        super().__init__(backbone, cfg, classes)
        self.predict = StepPredictor(backbone.dim, backbone.cfg.conv_dims[-1], cfg.num_steps)

    @staticmethod
    def plan(
        cfg: Config,
        dim: int,
        frame_lens: np.ndarray,
        rngs: Sequence[np.random.Generator],
        train: bool,
    ) -> Plan:
        """Negatives (B, T, N): for frame t of a row, frames of that row other than t.

        Targets are the pairs (t, i) whose frame t + offset + i exists. `cfg` must have its offset
        resolved, as `Wav2Vec(...).cfg` has.
        """
        if cfg.offset_frames is None:
            raise ConfigError(
                "objective.offset_frames: not resolved; plan with the `cfg` of a built objective"
            )
        shape = (len(frame_lens), int(max(frame_lens, default=0)), cfg.num_negatives)
        negatives = np.zeros(shape, dtype=np.int64)
        num_targets = 0
        for row, (length, rng) in enumerate(zip(frame_lens.tolist(), rngs, strict=True)):
            if length > 1:
                drawn = rng.integers(0, length - 1, size=(length, cfg.num_negatives))
                drawn += drawn >= np.arange(length)[:, None]  # skips the frame itself
                negatives[row, :length] = drawn
            first = length - cfg.offset_frames
            num_targets += sum(max(first - i, 0) for i in range(cfg.num_steps))
        return Plan(num_targets=num_targets, negatives=negatives)

    def forward(self, batch: Batch) -> Loss:
        """The loss of one micro-batch; `batch.negatives` (B, T, N) as `plan` draws them."""
        if batch.negatives is None:
            raise ValueError("wav2vec needs a batch with negatives; see Objective.plan_fn")
        z = self.backbone.encode(batch.wave, batch.wave_lens)
        c = self.backbone.context(z)
        num_frames = batch.negatives.shape[1]
        predicted = self._align(self.predict(c.x[:, :num_frames]))  # (B, T, K, C)
        candidates = _candidates(z.x[:, :num_frames], batch.negatives)  # (B, T, 1 + N, C)
        with torch.autocast(z.x.device.type, enabled=False):
            dtype = torch.promote_types(z.x.dtype, torch.float32)
            scores = predicted.to(dtype) @ candidates.to(dtype).mT  # (B, T, K, 1 + N)
        scored = self._scored(z.lens, num_frames)
        scores = scores[scored]  # (M, 1 + N), the positive first
        total, count = self._cross_entropy(scores), scored.sum()
        logs = {"contrastive": Sum(total.detach(), count)} | _logs(scores.detach(), scored)
        if not self.training:
            logs |= moments(c)
        return Loss(total, count, logs)

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds the signs of collapse of `health` at evaluation."""
        return super().summary(sums) | health(sums)

    def chance(self) -> dict[str, float]:
        """The best that one and the same score for every candidate can do.

        For `nce` that is ln(N + 1) + N ln((N + 1) / N), 3.35 with ten negatives: the bias alone
        gets there within some steps from the (N + 1) ln 2 of scores of zero.
        """
        wrong = self.cfg.num_negatives
        choices = 1 + wrong
        if self.cfg.loss == "infonce":
            loss = math.log(choices)
        elif self.cfg.balanced:
            loss = 2 * math.log(2)
        else:
            loss = math.log(choices) + wrong * math.log(choices / wrong)
        steps = {f"accuracy_step_{i + 1}": 1 / choices for i in range(self.cfg.num_steps)}
        return {"contrastive": loss, "accuracy": 1 / choices} | steps

    def _align(self, predicted: Tensor) -> Tensor:
        """Predictions by source frame -> by target frame: (b, t, i) from (b, t - offset - i, i).

        So the candidates of a frame meet all K predictions of it in one product.
        """
        num_frames, first = predicted.shape[1], self.cfg.offset_frames
        shifts = [min(first + i, num_frames) for i in range(self.cfg.num_steps)]
        moved = [
            F.pad(predicted[:, : num_frames - shift, i], (0, 0, shift, 0))
            for i, shift in enumerate(shifts)
        ]
        return torch.stack(moved, dim=2)

    def _scored(self, lens: Tensor, num_frames: int) -> Tensor:
        """(B, T, K) bool, True where frame t exists and so does the frame that predicts it."""
        frame = torch.arange(num_frames, device=lens.device)
        ahead = torch.arange(self.cfg.num_steps, device=lens.device) + self.cfg.offset_frames
        return (frame < lens[:, None])[:, :, None] & (frame[:, None] >= ahead)

    def _cross_entropy(self, scores: Tensor) -> Tensor:
        """Sum over targets of the loss of scores (M, 1 + N), the positive first."""
        if self.cfg.loss == "infonce":
            positive = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
            return F.cross_entropy(scores, positive, reduction="sum")
        weight = 1 / self.cfg.num_negatives if self.cfg.balanced else 1.0
        positive = F.logsigmoid(scores[:, 0]).sum()
        return -positive - weight * F.logsigmoid(-scores[:, 1:]).sum()


def _candidates(z: Tensor, negatives: Tensor) -> Tensor:
    """`z` (B, T, C), `negatives` (B, T, N) frames of a row -> (B, T, 1 + N, C), itself first."""
    rows, num_frames = z.shape[:2]
    own = torch.arange(num_frames, device=z.device).expand(rows, -1)[:, :, None]
    start = num_frames * torch.arange(rows, device=z.device)[:, None, None]
    # An embedding lookup, for its gradient is summed by row and not element by element.
    return F.embedding(torch.cat([own, negatives], dim=2) + start, z.flatten(0, 1))


def _logs(scores: Tensor, scored: Tensor) -> dict[str, Sum]:
    """Accuracy over all and per step ahead, mean scores; scores (M, 1 + N), scored (B, T, K)."""
    count = scored.sum()
    positive, negative = scores[:, 0], scores[:, 1:]
    wins = torch.zeros_like(scored)
    wins[scored] = positive > negative.amax(1)  # a tie is lost
    per_step, targets = wins.sum((0, 1)), scored.sum((0, 1))
    logs = {
        "accuracy": Sum(wins.sum(), count),
        "pos_score": Sum(positive.sum(), count),
        "neg_score": Sum(negative.mean(1).sum(), count),
    }
    for i in range(scored.shape[2]):
        logs[f"accuracy_step_{i + 1}"] = Sum(per_step[i], targets[i])
    return logs
