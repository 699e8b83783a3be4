"""The wav2vec (v1) encoder and aggregator: arithmetic, padding, causality, size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.backbone import Backbone
from speechssl.models.blocks.conv import StridedConv
from speechssl.models.presets import preset
from speechssl.types import Frames


class NoNorm(nn.Module):
    """Stands in for MaskedGroupNorm, whose statistics cover all frames."""

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        return x


def small(dims: int = 8, kernels: tuple[int, ...] = (2, 3, 4), **overrides: object) -> Backbone:
    torch.manual_seed(1)
    settings = {
        "conv_dims": (dims,) * 5,
        "dim": 8,
        "layers": len(kernels),
        "context_kernels": kernels,
        "normalize": False,
    }
    return Backbone(preset("wav2vec-tiny", **settings | overrides)).eval()


def without_norms(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if hasattr(module, "layer_norm"):
            module.layer_norm = NoNorm()
    return network


def test_strided_conv_is_conv1d_channels_last() -> None:
    ours = StridedConv(3, 5, 4, stride=2)
    theirs = nn.Conv1d(3, 5, 4, stride=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 21, 3)
    torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2))


def test_encoder_equals_the_plain_formula() -> None:
    backbone = small().double()
    wave = torch.randn(2, 2000, dtype=torch.float64)
    x = wave[:, None]
    for layer in backbone.feature_extractor.conv_layers:
        x = F.conv1d(x, layer.conv.weight, None, layer.conv.stride)
        x = F.relu(F.group_norm(x, 1, layer.layer_norm.weight, layer.layer_norm.bias))
    expected = torch.log(1 + x.abs()).transpose(1, 2)
    z = backbone.encode(wave, torch.tensor([2000, 2000]))
    torch.testing.assert_close(z.x, expected, rtol=0, atol=1e-10)
    assert z.lens.tolist() == [expected.shape[1]] * 2


def test_aggregator_equals_the_plain_formula() -> None:
    backbone = small().double()
    z = torch.randn(2, 11, 8, dtype=torch.float64)
    x = z.transpose(1, 2)
    for layer in backbone.encoder.layers:
        y = F.conv1d(
            F.pad(x, (layer.conv.kernel_size[0] - 1, 0), mode="replicate"),
            layer.conv.weight,
            layer.conv.bias,
        )
        y = F.relu(F.group_norm(y, 1, layer.layer_norm.weight, layer.layer_norm.bias))
        x = (y + x) * 0.5**0.5
    c = backbone.context(Frames(z, torch.tensor([11, 11])))
    torch.testing.assert_close(c.x, x.transpose(1, 2), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("samples", "frames"), [(464, 0), (465, 1), (16000, 98), (10000, 60)])
def test_frame_clock(samples: int, frames: int) -> None:
    geometry = small().geometry
    assert (geometry.hop, geometry.receptive) == (160, 465)
    assert geometry.frames(samples) == frames


@pytest.mark.parametrize("normalize", [False, True])
def test_padding_never_changes_a_result(normalize: bool) -> None:
    backbone = small(normalize=normalize)
    clip = torch.randn(1, 3000) * 0.1 + 0.05
    alone = backbone(clip, torch.tensor([3000]), layers=True)
    batch = torch.zeros(2, 9000)
    batch[0, :3000] = clip
    batch[1] = torch.randn(9000)
    padded = backbone(batch, torch.tensor([3000, 9000]), layers=True)
    frames = alone.x.shape[1]
    assert padded.lens[0] == alone.lens[0] == frames
    for one, other in zip(alone.layers, padded.layers, strict=True):
        torch.testing.assert_close(other[:1, :frames], one, rtol=0, atol=1e-5)


def test_a_row_too_short_for_a_frame_is_harmless() -> None:
    backbone = small()
    c = backbone(torch.randn(2, 2000), torch.tensor([100, 2000]))
    assert c.lens.tolist() == [0, 10]
    assert c.x.isfinite().all()


def test_context_looks_only_backwards() -> None:
    backbone = without_norms(small())
    z = torch.randn(1, 14, 8, requires_grad=True)
    c = backbone.context(Frames(z, torch.tensor([14]))).x
    reach = 1 + sum(kernel - 1 for kernel in (2, 3, 4))
    for frame in range(14):
        (grad,) = torch.autograd.grad(c[0, frame].sum(), z, retain_graph=True)
        seen = grad[0].abs().sum(-1).nonzero()[:, 0]
        assert seen.max() == frame
        assert seen.min() == max(frame - reach + 1, 0)


def test_frame_sees_exactly_its_receptive_field() -> None:
    backbone = without_norms(small())
    # All weights positive on a positive wave, so that no path dies in a ReLU.
    for parameter in backbone.feature_extractor.parameters():
        parameter.data.abs_()
    wave = torch.rand(1, 2000, requires_grad=True)
    z = backbone.encode(wave, torch.tensor([2000])).x
    (grad,) = torch.autograd.grad(z[0, 4].sum(), wave)
    seen = grad[0].nonzero()[:, 0]
    assert (seen.min(), seen.max()) == (4 * 160, 4 * 160 + 464)


def test_layer_states_are_inputs_and_then_the_output() -> None:
    backbone = small()
    z = backbone.encode(torch.randn(1, 2000), torch.tensor([2000]))
    c = backbone.context(z, layers=True)
    assert len(c.layers) == backbone.num_layers + 1
    assert c.layers[0] is z.x
    assert c.layers[-1] is c.x
    assert not backbone.causal  # the statistics of its norms cover the whole utterance


def test_other_width_than_the_encoder_goes_through_a_residual_map() -> None:
    backbone = small(dims=6)
    c = backbone(torch.randn(1, 2000), torch.tensor([2000]))
    assert c.x.shape == (1, 10, 8)
    assert [layer.residual is None for layer in backbone.encoder.layers] == [False, True, True]


def test_size_of_the_large_network() -> None:
    with torch.device("meta"):
        backbone = Backbone(preset("wav2vec"))
    encoder = sum(p.numel() for p in backbone.feature_extractor.parameters())
    context = sum(p.numel() for p in backbone.encoder.parameters())
    assert encoder == 512 * 10 + 512 * 512 * (8 + 3 * 4 + 2) + 7 * 2 * 512
    assert context == 512 * 512 * sum(range(2, 14)) + 12 * 3 * 512
    reach = 1 + sum(kernel - 1 for kernel in backbone.cfg.context_kernels)
    assert reach == 79  # frames, 0.81 s
