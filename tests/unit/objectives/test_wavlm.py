"""WavLM: HuBERT's loss, and what is mixed into what."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.presets import preset
from speechssl.objectives.hubert import Hubert
from speechssl.objectives.masking import SpanMask
from speechssl.objectives.wavlm import WavLM, draw_mixing, mix
from speechssl.rng import generator
from speechssl.types import Batch
from tests.reference import hubert_ref, wavlm_ref

SHAPE: dict[str, Any] = {
    "conv_dims": (8,) * 7,
    "dim": 16,
    "layers": 2,
    "heads": 2,
    "ffn": 16,
    "pos_kernel": 8,
    "pos_groups": 4,
    "dropout": 0.0,
    "attention_positions": "gated_relative",
}
CLUSTERS = tuple(f"c/{k}" for k in range(7))
LENGTHS = [8000, 5200, 11100, 6400]


def build(clusters: tuple[str, ...] = CLUSTERS, **settings: Any) -> WavLM:
    torch.manual_seed(3)
    network = Backbone(preset("tiny", **SHAPE))
    small = {"mask": SpanMask(0.5, 3), "final_dim": 6, "mix_prob": 1.0}
    return WavLM(network, WavLM.Config(**small | settings), clusters)


def make_batch(objective: Hubert, lengths: list[int] = LENGTHS, *, train: bool = True) -> Batch:
    """A batch whose row b depends on its length alone, so that batches can be recomposed."""
    wave = torch.zeros(len(lengths), max(lengths))
    frame_lens = objective.backbone.geometry.frames(torch.tensor(lengths))
    labels = torch.full((len(lengths), int(frame_lens.max()), 1), -100)
    for row, (samples, frames) in enumerate(zip(lengths, frame_lens.tolist(), strict=True)):
        source = np.random.default_rng(samples)
        wave[row, :samples] = torch.from_numpy(source.standard_normal(samples)).float() * 0.1
        labels[row, :frames, 0] = torch.from_numpy(source.integers(len(CLUSTERS), size=frames))
    plan = objective.plan_fn()(frame_lens.numpy(), [generator(0, n) for n in lengths], train)
    assert plan.mask is not None
    return Batch(
        ids=[str(n) for n in lengths],
        wave=wave,
        wave_lens=torch.tensor(lengths),
        frame_lens=frame_lens,
        num_targets=plan.num_targets,
        mask=torch.from_numpy(plan.mask),
        labels=labels,
        mixing=None if plan.mixing is None else torch.from_numpy(plan.mixing),
    )


def voices(lengths: list[int] = LENGTHS, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of noise as loud as their number, and their lengths."""
    wave = torch.zeros(len(lengths), max(lengths) + pad)
    source = torch.Generator().manual_seed(1)
    for row, samples in enumerate(lengths):
        wave[row, :samples] = torch.randn(samples, generator=source) * 0.1 * (row + 1)
    return wave, torch.tensor(lengths)


def drawn(rows: int = len(LENGTHS), prob: float = 1.0, seed: int = 0) -> Tensor:
    rngs = [generator(seed, row) for row in range(rows)]
    return torch.from_numpy(draw_mixing(prob, (-5.0, 5.0), rngs))


def places(lengths: list[int], mixing: Tensor, row: int) -> tuple[int, int, int, int]:
    """Other row, length, and begin in the row and in the other one, by integer arithmetic."""
    other = int(mixing[row, 0])
    shares = [float(x) for x in mixing[row, 2:]]
    length = min(int(shares[0] * (lengths[row] // 2 + 1)), lengths[other])
    into = int(shares[1] * (lengths[row] - length + 1))
    return other, length, into, int(shares[2] * (lengths[other] - length + 1))


def test_loss_and_gradients_equal_the_slow_reference():
    objective = build(penalty_weight=3.0).double()
    batch = make_batch(objective)
    batch.wave = batch.wave.double()
    assert batch.mask is not None
    assert batch.labels is not None
    assert batch.mixing is not None
    loss = objective(batch)
    loss.total.backward()
    got = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}

    objective.zero_grad()
    wave = torch.zeros_like(batch.wave)
    rows = [batch.wave[row, :samples].tolist() for row, samples in enumerate(LENGTHS)]
    for row, samples in enumerate(LENGTHS):
        other, length, into, source = places(LENGTHS, batch.mixing, row)
        assert length > 100
        ratio_db = float(batch.mixing[row, 1])
        mixed = wavlm_ref.mix(
            rows[row], rows[other], ratio_db=ratio_db, length=length, into=into, source=source
        )
        wave[row, :samples] = torch.tensor(mixed, dtype=torch.float64)
    z = objective.backbone.encode(wave, batch.wave_lens)
    context = objective.backbone.context(z, batch.mask)
    total = torch.zeros((), dtype=torch.float64)
    for row, frames in enumerate(batch.frame_lens.tolist()):
        for frame in batch.mask[row].nonzero()[:, 0].tolist():
            label = int(batch.labels[row, frame, 0])
            total = total + hubert_ref.frame_loss(
                objective.head(context.x[row, frame]), objective.label_embs, label, 0.1
            )
        total = total + 3.0 * batch.mask[row].sum() * z.x[row, :frames].square().mean()
    total.backward()
    # The library's softmaxes run in single precision, whatever the weights are.
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert int(loss.count) == int(batch.mask.sum()) == batch.num_targets
    wanted = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, atol=1e-6 * scale, rtol=1e-4, msg=name)
    assert wanted["backbone.encoder.layers.0.attention.rel_attn_embed.weight"].any()


def test_without_mixing_it_is_hubert():
    objective = build(mix_prob=0.0)
    twin = Hubert(objective.backbone, Hubert.Config(mask=SpanMask(0.5, 3), final_dim=6), CLUSTERS)
    twin.load_state_dict(objective.state_dict())
    batch = make_batch(objective)
    assert batch.mixing is not None
    assert (batch.mixing[:, 0] == -1).all()
    assert torch.equal(objective(batch).total, twin(make_batch(twin)).total)
    clean = make_batch(twin)
    assert batch.mask is not None
    assert clean.mask is not None
    assert torch.equal(batch.mask, clean.mask)


def test_labels_and_the_batch_itself_stay_clean():
    objective = build()
    batch = make_batch(objective)
    before = replace(batch, wave=batch.wave.clone())
    assert batch.labels is not None
    kept = batch.labels.clone()
    loss = objective(batch)
    assert torch.equal(batch.wave, before.wave)
    assert torch.equal(batch.labels, kept)
    assert objective.summary(loss.logs)["mixed_frac"] == 1.0
    clean = make_batch(build(mix_prob=0.0))
    assert not torch.equal(objective(clean).total, loss.total)


@pytest.mark.parametrize("pad", [0, 4000])
def test_the_mixed_part_has_the_drawn_ratio_and_the_rest_is_untouched(pad: int):
    wave, lens = voices(pad=pad)
    for seed in range(20):
        mixing = drawn(prob=0.5, seed=seed)
        mixed = mix(wave, lens, mixing)
        for row, samples in enumerate(LENGTHS):
            added = (mixed[row] - wave[row]).double()
            if mixing[row, 0] < 0:
                assert torch.equal(mixed[row], wave[row])
                continue
            other, length, into, source = places(LENGTHS, mixing, row)
            assert other != row
            assert length <= samples // 2
            assert into + length <= samples
            outside = torch.ones(len(added), dtype=torch.bool)
            outside[into : into + length] = False
            assert torch.equal(mixed[row][outside], wave[row][outside])
            if length < 50:
                continue
            part = wave[other, source : source + length].double()
            part_power, added_power = (x.square().mean() for x in (part, added[~outside]))
            # What was added, scaled up to the power of all of the other row.
            whole = added_power / part_power * wave[other, : LENGTHS[other]].square().mean()
            ratio_db = 10 * torch.log10(wave[row, :samples].square().mean() / whole)
            assert float(ratio_db) == pytest.approx(float(mixing[row, 1]), abs=0.1)
            assert torch.corrcoef(torch.stack([part, added[~outside]]))[0, 1] > 0.9999


def test_padding_never_receives_or_gives_anything():
    lengths = [300, 20_000, 900]
    for pad in (0, 5000):
        wave, lens = voices(lengths, pad)
        # Longest parts, at the very end of both rows.
        mixing = torch.tensor([[1, 0.0, 1, 1, 1], [0, 0.0, 1, 1, 1], [1, 0.0, 1, 1, 1]])
        mixed = mix(wave, lens, mixing)
        for row, samples in enumerate(lengths):
            assert not mixed[row, samples:].any()
        received = (mixed != wave).sum(1).tolist()
        # Half the row, or all of the shorter source.
        assert received == [150, 300, 450]


def test_rows_are_mixed_from_a_copy():
    wave, lens = voices()
    mixing = drawn(seed=4)
    mixed = mix(wave, lens, mixing)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        where = torch.argsort(torch.tensor(order))
        moved = mixing[order]
        moved[:, 0] = where[moved[:, 0].long()]
        torch.testing.assert_close(mix(wave[order], lens[order], moved), mixed[order])
    chained = mixing.clone()
    chained[:, 0] = torch.tensor([1, 2, 3, 0])
    alone = chained.clone()
    alone[1:, 0] = -1
    assert torch.equal(mix(wave, lens, chained)[0], mix(wave, lens, alone)[0])


def test_silence_adds_nothing_and_gets_nothing():
    wave, lens = voices()
    wave[1] = 0.0
    mixing = drawn()
    mixing[:, 0] = torch.tensor([1, 0, 1, 0])
    mixed = mix(wave, lens, mixing)
    assert torch.equal(mixed[:3], wave[:3])
    assert not torch.equal(mixed[3], wave[3])


def test_decisions_of_an_utterance_are_its_own():
    names = ["a", "b", "c", "d"]

    def rows(some: list[str]) -> dict[str, np.ndarray]:
        found = draw_mixing(0.5, (-5.0, 5.0), [generator(2, name) for name in some])
        return dict(zip(some, found, strict=True))

    whole, turned, part = rows(names), rows(names[::-1]), rows(["d", "b"])
    for name in names:
        np.testing.assert_array_equal(whole[name][1:], turned[name][1:])
        # The same other utterance, in whatever order they lie.
        other, again = int(whole[name][0]), int(turned[name][0])
        assert (other, again) == (-1, -1) or names[other] == names[::-1][again]
    for name, row in part.items():
        np.testing.assert_array_equal(row[1:], whole[name][1:])
        assert (row[0] < 0) == (whole[name][0] < 0)
    assert {whole[name][0] >= 0 for name in names} == {True, False}


def test_a_batch_of_one_and_evaluation_mix_nothing():
    objective = build()
    for batch in (make_batch(objective, [8000]), make_batch(objective, train=False)):
        assert batch.mixing is not None
        assert (batch.mixing[:, 0] == -1).all()
        assert torch.equal(mix(batch.wave, batch.wave_lens, batch.mixing), batch.wave)
        assert objective.summary(objective(batch).logs)["mixed_frac"] == 0.0


def test_a_batch_that_lacks_mixing_is_refused():
    objective = build()
    batch = replace(make_batch(objective), mixing=None)
    with pytest.raises(ConfigError, match="'mixing'"):
        objective.check(batch)


def test_order_of_a_batch_changes_nothing_while_rows_mix():
    objective = build()
    straight, turned = (
        objective(make_batch(objective, lengths)).total for lengths in (LENGTHS, LENGTHS[::-1])
    )
    torch.testing.assert_close(turned, straight, rtol=1e-5, atol=0)


def test_draws_are_even():
    rows, times = 5, 800
    mixing = torch.cat([drawn(rows, prob=0.2, seed=seed) for seed in range(times)])
    mixed = mixing[mixing[:, 0] >= 0]
    share = len(mixed) / len(mixing)
    assert abs(share - 0.2) < 3 * math.sqrt(0.2 * 0.8 / len(mixing))
    own = torch.arange(rows).repeat(times)[mixing[:, 0] >= 0]
    ahead = ((mixed[:, 0].long() - own) % rows).bincount(minlength=rows)
    assert ahead[0] == 0
    even = len(mixed) / (rows - 1)
    assert (ahead[1:] - even).abs().max() < 4 * math.sqrt(even)
    scaled = torch.cat([(mixed[:, 1:2] + 5) / 10, mixed[:, 2:]], 1)
    assert 0 <= scaled.min() < 0.01
    assert 0.99 < scaled.max() <= 1
    deviation = 3 * math.sqrt(1 / 12 / len(mixed))
    assert (scaled.mean(0) - 0.5).abs().max() < 1.3 * deviation


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mix_prob": 1.5}, "mix_prob: got 1.5"),
        ({"mix_ratio_db": (5.0, -5.0)}, "mix_ratio_db: got 5 to -5"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"clusters": ("c/0",)}, "objective wavlm: got 1 clusters"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        build(**settings)


def test_the_published_base_model_has_its_size():
    with torch.device("meta"):
        network = Backbone(preset("wavlm-base"))
    assert sum(p.numel() for p in network.parameters()) == 94_381_936
