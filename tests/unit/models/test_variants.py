"""Every kind of position and block: padding changes nothing, and every weight learns."""

from __future__ import annotations

import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.presets import preset

SMALL = {
    "conv_dims": (8,) * 7, "dim": 16, "layers": 2, "heads": 2, "ffn": 24, "pos_kernel": 6,
    "pos_groups": 4, "dropout": 0.0,
}  # fmt: skip
CONFORMER = {"block": "conformer", "pos_conv": "none", "block_kernel": 5, "block_dropout": 0.0}
VARIANTS = {
    "gated": {"attention_positions": "gated_relative", "rel_buckets": 8},
    "gated, post-norm": {"attention_positions": "gated_relative", "norm": "post"},
    "stack": {"pos_conv": "stack", "pos_depth": 3, "pos_kernel": 5},
    "batch norm": {"pos_conv": "batch_norm"},
    "no projection norm": {"projection_norm": False},
    "rotary": {"attention_positions": "rotary", "pos_conv": "none"},
    "conformer": CONFORMER,
    "conformer, rotary": CONFORMER | {"attention_positions": "rotary", "activation": "swish"},
    "conformer, relative": CONFORMER | {"attention_positions": "relative"},
    "conformer, batch norm": CONFORMER | {"block_norm": "batch", "pos_conv": "weight_norm"},
}


def built(name: str) -> Backbone:
    torch.manual_seed(1)
    return Backbone(preset("tiny", **(SMALL | VARIANTS[name])))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_padding_changes_no_state(name: str, mode: str):
    backbone = built(name).train(mode == "train")
    lens = torch.tensor([9000, 6100])
    wave = torch.randn(2, 9000, generator=torch.Generator().manual_seed(1))
    wave[1, 6100:] = 0.0
    together = backbone(wave, lens, layers=True)
    alone = backbone(wave[1:, :6100], lens[1:], layers=True)
    assert len(together.layers) == 3
    for mine, other in zip(together.layers, alone.layers, strict=True):
        torch.testing.assert_close(mine[1, : other.shape[1]], other[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_learns(name: str):
    backbone = built(name)
    with torch.no_grad():  # what starts at zero passes no gradient on to its neighbour
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    wave = torch.randn(1, 6000, generator=torch.Generator().manual_seed(1))
    lens = torch.tensor([6000])
    mask = torch.zeros(1, backbone.geometry.frames(6000), dtype=torch.bool)
    mask[:, 3:6] = True
    z = backbone.encode(wave, lens)
    (backbone.context(z, mask).x * torch.randn(16)).sum().backward()
    still = [
        key for key, p in backbone.named_parameters() if p.grad is None or not bool(p.grad.any())
    ]
    # Softmax does not see what is added to all scores of a query.
    assert [key for key in still if not key.endswith("k_proj.bias")] == []


@pytest.mark.parametrize("name", ["stack", "rotary", "conformer, relative", "gated"])
@torch.no_grad()
def test_attention_tells_order_only_by_positions(name: str):
    """Reversed in time, plain attention gives the same reversed."""
    attention = built(name).encoder.layers[0].attention
    for parameter in attention.parameters():
        parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1))
    positions = attention.positions_of(12)
    y, turned = attention(x, None, positions), attention(x.flip(1), None, positions).flip(1)
    difference = float((y - turned).abs().max())
    if name == "stack":
        assert difference < 1e-5
    else:
        assert difference > 0.1


def test_impossible_blocks_are_refused():
    for wrong in (
        {"block": "conformer", "norm": "post"},
        {"block": "conformer", "block_kernel": 4},
        {"block_kernel": 7},
        {"attention_positions": "rotary", "rel_buckets": 8},
        {"attention_positions": "rotary", "dim": 10, "heads": 2, "pos_groups": 2},
    ):
        with pytest.raises(ConfigError, match=r"block|rotary"):
            preset("tiny", **wrong)
