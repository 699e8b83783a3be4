"""DinoSR against a slow reference; what moves its codebooks, and when."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.objectives.context_teacher import Decay
from speechssl.objectives.dinosr import DinoSR
from speechssl.objectives.masking import SpanMask
from speechssl.types import Batch, Frames, Progress, Sum
from tests.reference import data2vec_ref, dinosr_ref
from tests.unit.objectives.masked import feed_forwards_by_hand, noise_batch, small_backbone

START = Progress(step=0, max_steps=10)


def build(network: dict[str, Any] | None = None, **settings: Any) -> DinoSR:
    small = {"mask": SpanMask(0.5, 3), "top_layers": 2, "codes": 6}
    objective = DinoSR(small_backbone(**network or {}), DinoSR.Config(**small | settings))
    # Of variances far above the eps of the instance norm, as in networks of real size.
    with torch.no_grad():
        for block in objective.backbone.encoder.layers:  # type: ignore[union-attr]
            block.feed_forward.output_dense.weight.mul_(100.0)
    objective.begin_step(START)
    return objective.train()


def book(objective: DinoSR) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in objective.codebooks.state_dict().items()}


def update(objective: DinoSR, *micro: Batch) -> dict[str, torch.Tensor]:
    """The codebooks after one update, weights left alone."""
    objective.begin_step(START)
    for batch in micro:
        objective(batch)
    objective.after_step(replace(START, step=1))
    return book(objective)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_loss_gradients_and_codebooks_equal_the_slow_reference(norm: str):
    objective = build({"norm": norm}, codes=24)
    update(objective, noise_batch(objective, (9000,)))  # so that counts are not all one
    with torch.no_grad():  # another student than teacher
        for p in objective.backbone.parameters():
            p.add_(0.05 * torch.randn_like(p))
    objective.double()
    batch = noise_batch(objective)
    batch = replace(batch, wave=batch.wave.double())
    before = book(objective)
    objective.begin_step(Progress(step=1, max_steps=10))
    loss = objective(batch)
    loss.total.backward()
    got = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    assert all(p.grad is None for p in objective.teacher.parameters())

    objective.zero_grad()
    mask = batch.mask
    assert mask is not None
    codes = before["sums"] / before["counts"][..., None]
    seen: list[tuple[list[torch.Tensor], list[int]]] = [([], []), ([], [])]
    z = objective.backbone.encode(batch.wave, batch.wave_lens)
    context = objective.backbone.context(z, mask)
    total = torch.zeros((), dtype=torch.float64)
    for row, frames in enumerate(batch.frame_lens.tolist()):
        with torch.no_grad():
            alone = objective.backbone.project(Frames(z.x[row : row + 1, :frames], z.lens)).x
            layers = feed_forwards_by_hand(objective.teacher.network, alone)[-2:]
        for layer, (heard, labels) in enumerate(seen):
            wanted = data2vec_ref.normalised(list(layers[layer][0]))
            for t in mask[row].nonzero()[:, 0].tolist():
                heard.append(wanted[t])
                labels.append(dinosr_ref.nearest(wanted[t], list(codes[layer])))
                scores = objective.head(context.x[row, t])[24 * layer : 24 * (layer + 1)]
                total = total + dinosr_ref.cross_entropy(scores, labels[-1]) / 2
    total.backward()
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert int(loss.count) == int(mask.sum()) == batch.num_targets
    known = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    assert set(known) == {n for n, p in objective.named_parameters() if p.requires_grad}
    scale = max(float(g.abs().max()) for g in known.values())
    for name, grad in known.items():
        torch.testing.assert_close(got[name], grad, atol=1e-6 * scale, rtol=1e-6, msg=name)

    objective.after_step(replace(START, step=1))
    after = book(objective)
    for layer, (heard, labels) in enumerate(seen):
        hits = torch.bincount(torch.tensor(labels), minlength=24)
        assert torch.equal(loss.logs["code_hist"].total[layer], hits)
        assert 0 < int((hits == 0).sum()) < 24  # both kinds are there
        sums, counts = dinosr_ref.moved(
            list(before["sums"][layer]), before["counts"][layer].tolist(), heard, labels, 0.9
        )
        torch.testing.assert_close(after["sums"][layer], torch.stack(sums))
        torch.testing.assert_close(after["counts"][layer], torch.tensor(counts).double())
        untouched = hits == 0
        assert torch.equal(after["sums"][layer, untouched], before["sums"][layer, untouched])
        idle = torch.where(untouched, before["idle"][layer] + 1, 0)
        assert torch.equal(after["idle"][layer], idle)


def test_codebooks_do_not_depend_on_how_an_update_is_split():
    objective = build()
    whole = noise_batch(objective)
    parts = [noise_batch(objective, (samples,)) for samples in (8000, 5200, 11100)]
    together = update(copy.deepcopy(objective), whole)
    apart = update(copy.deepcopy(objective), *parts)
    assert not torch.equal(together["sums"], book(objective)["sums"])
    for name, value in together.items():
        torch.testing.assert_close(apart[name], value, rtol=1e-5, atol=1e-5)


def test_only_updates_that_are_made_move_the_codebooks():
    objective = build()
    before, batch = book(objective), noise_batch(objective)
    wanted = update(copy.deepcopy(objective), batch)
    # An update that was given up leaves nothing behind.
    objective(noise_batch(objective, (9000,)))
    assert all(map(torch.equal, book(objective).values(), before.values()))
    # Neither does validation, nor a rank's filler.
    objective.eval()(noise_batch(objective, (7000,)))
    objective.train()
    objective.begin_step(START)
    objective(replace(noise_batch(objective, (16000,)), num_targets=0))
    objective(batch)
    objective.after_step(replace(START, step=1))
    for name, value in book(objective).items():
        assert torch.equal(value, wanted[name]), name


def test_sums_that_stay_leave_the_codes_where_they_are():
    objective = build(code_decay=1.0)
    before = book(objective)
    after = update(objective, noise_batch(objective))
    assert torch.equal(after["sums"], before["sums"])
    assert torch.equal(after["counts"], before["counts"])


def test_codebooks_start_normalised_over_codes_and_the_same_every_time():
    objective = build(codes=64)
    start = objective.codebooks.sums
    assert float(start.mean(1).abs().max()) < 1e-5
    torch.testing.assert_close(start.var(1, unbiased=False), torch.ones(2, 16), rtol=0, atol=1e-3)
    assert not torch.equal(start[0], start[1])
    torch.manual_seed(99)
    assert torch.equal(DinoSR(small_backbone(), objective.cfg).codebooks.sums, start)
    assert {v.dtype for v in objective.codebooks.buffers()} == {torch.float32, torch.int64}


def test_the_teacher_follows_as_in_data2vec():
    objective = build(ema=Decay(0.5, 0.9, 10))
    student, teacher = objective.backbone.encoder, objective.teacher.network
    before = copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.1)
    progress = Progress(step=4, max_steps=20)
    objective.begin_step(progress)
    objective(noise_batch(objective))
    objective.after_step(replace(progress, step=5))
    decay = data2vec_ref.decay(4, 0.5, 0.9, 10)
    for name, theirs in student.state_dict().items():
        wanted = data2vec_ref.averaged(before[name], theirs, decay)
        if name.startswith("pos_conv_embed."):
            wanted = theirs
        torch.testing.assert_close(teacher.state_dict()[name], wanted, rtol=0, atol=1e-6, msg=name)


def test_codes_that_nothing_is_near_count_as_dead_in_the_end():
    objective = build()
    batch = noise_batch(objective)
    with torch.no_grad():  # two codes of each book are out of reach
        objective.codebooks.sums[:, :2] = 1e3
    for _ in range(2):
        update(objective, batch)
    assert int(objective.codebooks.num_dead()) == 0
    with torch.no_grad():
        objective.codebooks.idle[:, :2] += 998
    assert objective.summary(objective(batch).logs)["dead_codes"] == pytest.approx(4 / 12)
    with torch.no_grad():
        objective.codebooks.idle[:, :2] -= 1
    assert objective.summary(objective(batch).logs)["dead_codes"] == 0


def test_untrained_loss_is_near_that_of_guessing():
    objective = build(codes=64).eval()
    scores = objective.summary(objective(noise_batch(objective)).logs)
    assert scores["masked_loss"] == pytest.approx(math.log(64), abs=0.5)
    assert scores["known_nats"] < 0.1
    assert objective.chance()["masked_loss"] == math.log(64)
    assert 1 < scores["target_ppl"] <= 64
    assert 1 <= scores["pred_ppl"] <= 64


def test_one_code_for_everything_is_nothing_known():
    objective = build()
    n = torch.tensor(100)
    hist = torch.zeros(2, 6)
    hist[:, 3] = 100
    logs = {"masked_loss": Sum(torch.tensor(0.0), n), "code_hist": Sum(hist, n)}
    scores = objective.summary(logs | {"pred_hist": Sum(hist, n)})
    assert scores["known_nats"] == pytest.approx(0.0, abs=1e-5)
    assert scores["target_ppl"] == scores["pred_ppl"] == pytest.approx(1.0, abs=1e-5)
    assert scores["top_code_share"] == 1.0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"codes": 1}, "objective.codes: got 1"),
        ({"code_decay": 1.1}, "objective.code_decay: got 1.1"),
        ({"top_layers": 4}, "objective.top_layers: got 4, expected 1 to 3"),
        ({"network": {"block": "conformer"}}, "objective dinosr .* 'conformer'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        build(**settings)
