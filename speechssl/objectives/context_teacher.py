"""A teacher of the context network, which alone sees what the student has to predict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.blocks.ema import Teacher, annealed
from speechssl.models.blocks.norms import standardise
from speechssl.models.context.transformer import Transformer
from speechssl.types import Frames


@dataclass(frozen=True)
class Decay:
    """How slowly a teacher follows: linear from `start` to `end` over `steps` updates."""

    start: float = 0.999
    end: float = 0.9999
    steps: int = 30000

    def __post_init__(self) -> None:
        if not (0.0 <= self.start <= 1.0 and 0.0 <= self.end <= 1.0 and self.steps >= 0):
            raise ConfigError(
                f"objective.ema: got start {self.start}, end {self.end}, steps {self.steps}; "
                "expected both between 0 and 1, and steps of at least 0"
            )

    def at(self, step: int) -> float:
        """Decay of update `step`, the first being 0."""
        return annealed(self.start, self.end, self.steps, step)


class ContextTeacher(Teacher):
    """Positions, blocks and norms that follow the student's, and what the top blocks make of z.

    Convolutional encoder and projection are the student's own; the weights of the convolutional
    positions are copied instead of averaged (arXiv 2202.03555, section 3, as released).
    """

    network: Transformer

    def __init__(self, backbone: Backbone, top: int, ema: Decay, name: str) -> None:
        cfg = backbone.cfg
        if cfg.context != "transformer" or cfg.block != "transformer":
            raise ConfigError(
                f"objective {name} masks the context network's input and learns from the feed-"
                f"forward parts of its blocks; backbone.context is '{cfg.context}' and backbone."
                f"block '{cfg.block}', expected 'transformer' for both"
            )
        if not 1 <= top <= cfg.layers:
            raise ConfigError(
                f"objective.top_layers: got {top}, expected 1 to {cfg.layers} (backbone.layers)"
            )
        super().__init__(backbone.encoder)
        self.top = top
        self.ema, self.decay = ema, ema.start

    def begin_step(self, student: nn.Module, step: int) -> None:
        """The decay of update `step`; before the first, the student's weights as they are.

        They may have been read from a file after the teacher was made.
        """
        self.decay = self.ema.at(step)
        if step == 0:
            self.copy(student)

    def follow(self, student: nn.Module, decay: float) -> None:
        """Weights <- decay * weights + (1 - decay) * the student's, but those of positions."""
        super().follow(student, decay)
        if self.network.pos_conv_embed is not None:
            theirs = student.get_submodule("pos_conv_embed")
            self.network.pos_conv_embed.load_state_dict(theirs.state_dict())

    @torch.no_grad()
    def targets(self, projected: Frames, mask: Tensor) -> Tensor:
        """Of the M masked frames, what each of the K top blocks makes of them, unmasked: (K, M, D).

        projected.x (B, T, D) is unmasked, mask (B, T) bool. What the feed-forward part puts out
        before the residual, of zero mean and unit variance over the valid frames of each utterance
        and channel (instance normalisation, eps 1e-5); at least float32.
        """
        found = []
        for x in self.network.feed_forwards(projected, self.top):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            found.append(standardise(x, projected.lens, eps=1e-5)[mask])
        return torch.stack(found)
