"""Connectionist temporal classification: fine-tune for speech recognition, or probe frozen layers.

Graves et al. 2006; recipe of wav2vec 2.0, arXiv 2006.11477, section 4.3 and appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.data.tokens import Characters
from speechssl.downstream.decode import BLANK, Hypothesis, decode, greedy, spell
from speechssl.downstream.freeze import backbone_frames, freeze, freeze_features
from speechssl.downstream.readout import StateNorm, weighted_sum
from speechssl.errors import ConfigError, DataError
from speechssl.models.backbone import Backbone
from speechssl.objectives.base import Objective
from speechssl.objectives.masking import ChannelMask, SpanMask
from speechssl.types import Batch, Loss, Plan, Progress, Sum, Utterance

#: Share of blanks a head answers that knows nothing of its data: 15 characters in 50 frames.
BLANK_SHARE = 0.65


class CTC(Objective):
    """Linear map from context frames to characters, trained with the CTC loss.

    The loss is summed over utterances and counted in utterances, as fairseq's `sentence_avg` does.
    Differs: the head starts near zero with a bias towards blanks, not with fairseq's random
    answers, and `know_training_data` makes this bias the share of each character: hundreds of
    updates would go by before a bias that moves by the learning rate got there; an utterance with
    more characters than its frames can hold adds 0 to the loss as with `zero_infinity`, and is
    counted in the log `unreachable`.
    """

    @dataclass(frozen=True)
    class Config:
        """Fine-tuning settings; the defaults are those of the 10 minute and 1 hour base set-ups.

        frozen: the backbone never learns and runs in evaluation mode without masks (a probe).
        freeze_features: the convolutional encoder never learns.
        freeze_steps: updates in which the head alone learns; masks and dropout stay on.
        layers: read the last layer, or a learnt weighted sum of all.
        norm: what brings the states of a weighted sum to one scale (see `readout.StateNorm`).
        mask, channel_mask: hidden spans of frames and of channels, in training only; prob 0 = none.
        best: the error rate on data.valid that picks the best model. A recogniser too weak to spell
            words stands near WER 1 whatever it writes, and silence at exactly 1: there, take cer.
        """

        frozen: bool = False
        freeze_features: bool = True
        freeze_steps: int = 0
        layers: Literal["last", "weighted"] = "last"
        norm: StateNorm = "none"
        mask: SpanMask = field(default_factory=SpanMask)
        channel_mask: ChannelMask = field(default_factory=ChannelMask)
        final_dropout: float = 0.0
        best: Literal["wer", "cer"] = "wer"

        def __post_init__(self) -> None:
            if self.freeze_steps < 0 or not 0.0 <= self.final_dropout < 1.0:
                raise ConfigError(
                    f"objective: got freeze_steps {self.freeze_steps} and final_dropout "
                    f"{self.final_dropout}, expected freeze_steps >= 0, 0 <= final_dropout < 1"
                )
            if self.frozen and self.freeze_steps:
                raise ConfigError(
                    f"objective: frozen already keeps the backbone fixed, but freeze_steps is "
                    f"{self.freeze_steps}; set one of the two"
                )
            if self.norm != "none" and self.layers == "last":
                raise ConfigError(
                    f"objective: norm '{self.norm}' is for the weighted sum, but layers is 'last'; "
                    "set layers to 'weighted' or norm to 'none'"
                )
            for key, default in (("mask", SpanMask()), ("channel_mask", ChannelMask())):
                given = getattr(self, key)
                if self.frozen and given != default and given.prob > 0:
                    raise ConfigError(
                        f"objective: a frozen backbone runs without masks, but {key} is {given}; "
                        "leave it out or set frozen to false"
                    )

    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "token_lens"})
    best_metric = (("wer", False), ("cer", False), ("loss_per_char", False))
    classes_from: ClassVar[Literal["text", "speaker"] | None] = "text"

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        if len(self.classes) < 2:
            raise ConfigError(
                f"objective ctc: got {len(self.classes)} classes, expected a vocabulary of at "
                "least the blank (index 0) and one character"
            )
        masks = cfg.mask.prob > 0 or cfg.channel_mask.prob > 0
        if masks and not cfg.frozen and backbone.cfg.context == "conv":
            raise ConfigError(
                "objective ctc: a convolutional context network takes no masks; set "
                "objective.mask.prob and objective.channel_mask.prob to 0"
            )
        if cfg.frozen:
            freeze(backbone)
        elif cfg.freeze_features:
            freeze_features(backbone)
        if cfg.layers == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(backbone.num_layers + 1))
        self.lm_head = nn.Linear(backbone.dim, len(self.classes))
        nn.init.normal_(self.lm_head.weight, std=0.02)
        self._answer(BLANK_SHARE, torch.ones(len(self.classes)))
        if cfg.best == "cer":
            wer, cer, loss = self.best_metric
            self.best_metric = (cer, wer, loss)
        self._step = 0

    def know_training_data(self, utterances: Sequence[Utterance]) -> None:
        """Let the untrained head answer each character as often as the transcripts hold it.

        Among constant answers, those with as many characters as the transcripts have for each frame
        of audio are close to the best (measured on read English: 3.00 nats a character, where equal
        shares of characters and 65 % of blanks cost 4.16).
        """
        tokenizer = Characters(self.classes)
        geometry = self.backbone.geometry
        counts, frames = torch.ones(len(self.classes)), 0
        for u in utterances:
            if u.text:
                ids = torch.tensor(tokenizer.encode(u.text), dtype=torch.int64)
                counts += torch.bincount(ids, minlength=len(counts))
                frames += geometry.frames(u.samples_at(geometry.rate_hz))
        characters = float(counts.sum()) - len(counts)
        if frames:
            self._answer(min(max(1.0 - characters / frames, 0.05), 0.95), counts)

    def _answer(self, blank_share: float, counts: Tensor) -> None:
        """Set the bias: blanks by their share, characters by `counts` (V,); its blank is unused."""
        shares = counts / counts[BLANK + 1 :].sum() * (1 - blank_share)
        shares[BLANK] = blank_share
        self.lm_head.bias.data.copy_(shares.log())

    @staticmethod
    def plan(
        cfg: Config,
        dim: int,
        frame_lens: np.ndarray,
        rngs: Sequence[np.random.Generator],
        train: bool,
    ) -> Plan:
        """Time and channel masks of training batches; targets are utterances."""
        mask = channel_mask = None
        if train and not cfg.frozen:
            if cfg.mask.prob > 0:
                mask = cfg.mask.draw(frame_lens, rngs)
            if cfg.channel_mask.prob > 0:
                channel_mask = cfg.channel_mask.draw(dim, rngs)
        return Plan(num_targets=len(frame_lens), mask=mask, channel_mask=channel_mask)

    def begin_step(self, progress: Progress) -> None:
        """Note the update, which decides whether the backbone learns yet."""
        super().begin_step(progress)
        self._step = progress.step

    def train(self, mode: bool = True) -> CTC:
        """Training mode, from which a frozen backbone is excepted."""
        super().train(mode)
        if self.cfg.frozen:
            self.backbone.eval()
        return self

    def log_probs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T, V) in float32 and their lengths (B,) in frames."""
        weighted = self.cfg.layers == "weighted"
        frames = backbone_frames(
            self.backbone,
            batch,
            features_learn=not self.cfg.freeze_features,
            context_learns=not self.cfg.frozen and self._step >= self.cfg.freeze_steps,
            layers=weighted,
        )
        x = frames.x
        if weighted:
            x = weighted_sum(frames, self.layer_weights, self.cfg.norm, batch.mask)
        logits = self.lm_head(F.dropout(x, self.cfg.final_dropout, self.training))
        return logits.float().log_softmax(-1), frames.lens

    def forward(self, batch: Batch) -> Loss:
        """CTC loss summed over utterances; error rates of the best path when evaluating.

        Raises DataError for a token outside the vocabulary, or the blank inside a target.
        """
        if batch.tokens is None or batch.token_lens is None:
            raise DataError("objective ctc: the batch has no tokens; does the manifest have text?")
        log_probs, lens = self.log_probs(batch)
        tokens, token_lens = batch.tokens, batch.token_lens
        self._check(batch.ids, tokens, token_lens)
        reachable = lens >= frames_needed(tokens, token_lens).clamp(min=1)
        losses = F.ctc_loss(
            log_probs.transpose(0, 1),
            tokens,
            lens.clamp(min=1),  # a row without frames is unreachable and dropped below
            token_lens,
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        losses = torch.where(reachable, losses, 0.0)  # (B,)
        count = torch.tensor(len(batch), device=losses.device)
        with torch.no_grad():
            valid = torch.arange(log_probs.shape[1], device=lens.device) < lens[:, None]
            blanks = (log_probs.argmax(-1) == BLANK) & valid
            logs = {
                "loss_per_char": Sum(losses.detach().sum(), token_lens[reachable].sum()),
                "blank_rate": Sum(blanks.sum(), valid.sum()),
                "unreachable": Sum((~reachable).sum(), count),
            }
            if not self.training:
                logs |= self._errors(greedy(log_probs, lens), tokens, token_lens)
        return Loss(losses.sum(), count, logs)

    @torch.no_grad()
    def predict(self, batch: Batch, beam: int = 1) -> list[str]:
        """Transcripts of a batch: best path, or prefix beam search for `beam` > 1.

        Call `eval()` first, or dropout is part of the answer.
        """
        return [spell(h.ids, self.classes) for h in decode(*self.log_probs(batch), beam)]

    def _check(self, ids: Sequence[str], tokens: Tensor, token_lens: Tensor) -> None:
        # ctc_loss reads out of bounds on such targets, or returns a wrong loss, without a word.
        inside = torch.arange(tokens.shape[1], device=tokens.device) < token_lens[:, None]
        bad = inside & ((tokens <= BLANK) | (tokens >= len(self.classes)))
        if bad.any():
            row, column = (int(i) for i in bad.nonzero()[0])
            raise DataError(
                f"objective ctc: utterance '{ids[row]}' has token {int(tokens[row, column])} at "
                f"position {column}, expected 1 to {len(self.classes) - 1} (0 is the blank); "
                "was it encoded with this model's vocabulary?"
            )

    def _errors(
        self, hypotheses: Sequence[Hypothesis], tokens: Tensor, token_lens: Tensor
    ) -> dict[str, Sum]:
        from rapidfuzz.distance.Levenshtein import distance  # what jiwer counts with

        rows = []
        for hypothesis, row, size in zip(
            hypotheses, tokens.tolist(), token_lens.tolist(), strict=True
        ):
            ref, hyp = spell(row[:size], self.classes), spell(hypothesis.ids, self.classes)
            words = ref.split()
            wrong = distance(words, hyp.split())
            rows.append((distance(ref, hyp), len(ref), wrong, len(words), int(not hyp), 1))
        sums = torch.tensor(rows, device=tokens.device).sum(0)
        return {
            "cer": Sum(sums[0], sums[1]),
            "wer": Sum(sums[2], sums[3]),
            "empty_rate": Sum(sums[4], sums[5]),
        }


def frames_needed(tokens: Tensor, token_lens: Tensor) -> Tensor:
    """Fewest frames that can spell each target: tokens (B, L), token_lens (B,) -> (B,).

    One per token, and one for the blank between equal neighbours.
    """
    equal = tokens[:, 1:] == tokens[:, :-1]
    inside = torch.arange(1, max(tokens.shape[1], 1), device=tokens.device) < token_lens[:, None]
    return token_lens + (equal & inside).sum(1)
