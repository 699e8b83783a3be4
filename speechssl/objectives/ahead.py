"""What objectives that predict later frames ask of a backbone."""

from __future__ import annotations

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone


def must_look_back(backbone: Backbone, name: str) -> None:
    """Raise ConfigError unless the backbone is causal: else the answer is in the question."""
    if not backbone.causal:
        raise ConfigError(
            f"objective {name} predicts frames from those before; the backbone looks ahead "
            f"(context '{backbone.cfg.context}', causal {backbone.cfg.causal}): set "
            "backbone.causal to true with context 'transformer' and conv_norm 'layer', or take the "
            "preset gru-tiny"
        )
