"""Signs of collapse from sums of moments against the definitions on the frames themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.data.collate import Collator
from speechssl.data.dataset import Example
from speechssl.engine.metrics import Metrics
from speechssl.models.backbone import build_backbone
from speechssl.models.presets import preset
from speechssl.objectives.base import Objective
from speechssl.objectives.health import effective_rank, health, moments
from speechssl.objectives.wav2vec import Wav2Vec
from speechssl.objectives.wav2vec2 import Wav2Vec2
from speechssl.types import Batch, Frames, Sum, Utterance

NAMES = {"std_l2", "std_l2_healthy", "mean_cos", "rankme", "rankme_centred"}


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor], *, pad: int = 0) -> Frames:
    """Rows (T_b, D) as one batch, with nonsense in the padding."""
    lens = torch.tensor([len(row) for row in rows])
    x = torch.full((len(rows), int(lens.max()) + pad, rows[0].shape[1]), math.nan)
    for out, row in zip(x, rows, strict=True):
        out[: len(row)] = row
    return Frames(x, lens)


def of_rows(*batches: list[Tensor]) -> dict[str, float]:
    sums = Metrics()
    for rows in batches:
        sums.merge(moments(padded(rows)))
    return sums.scalars(health)


def direct(rows: list[Tensor]) -> dict[str, float]:
    """The definitions, word by word: SVD of the frames, all pairs by a loop over utterances."""
    z = np.concatenate([row.double().numpy() for row in rows])
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    parts = np.split(unit, np.cumsum([len(row) for row in rows])[:-1])
    cosines = [
        (a @ b.T).ravel() for i, a in enumerate(parts) for j, b in enumerate(parts) if i != j
    ]

    def rank(matrix: np.ndarray) -> float:
        sigma = np.linalg.svd(matrix, compute_uv=False)
        p = sigma / sigma.sum() + 1e-7
        return math.exp(-(p * np.log(p)).sum())

    return {
        "std_l2": float(unit.std(0, ddof=1).mean()),
        "std_l2_healthy": 1 / math.sqrt(z.shape[1]),
        "mean_cos": float(np.concatenate(cosines).mean()),
        "rankme": rank(z),
        "rankme_centred": rank(z - z.mean(0)),
    }


LENGTHS = (50, 7, 130, 1, 33)
CLOUDS = {
    "noise": lambda n: gaussian(n, 24),
    "common mean": lambda n: gaussian(n, 24) + 3 * gaussian(24, seed=1),
    "decaying spectrum": lambda n: gaussian(n, 24) * 10 ** -torch.linspace(0, 5, 24),
    "low rank, large mean": lambda n: gaussian(n, 4) @ gaussian(4, 24, seed=1) + 100,
    "uneven norms": lambda n: gaussian(n, 24) * torch.logspace(-3, 3, n)[:, None],
}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_moments_give_what_the_frames_give(cloud: str) -> None:
    rows = list(CLOUDS[cloud](sum(LENGTHS)).split(LENGTHS))
    expected = direct(rows)
    assert of_rows(rows) == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert of_rows(rows[:2], rows[2:3], rows[3:]) == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_padding_and_precision_of_the_context_do_not_matter() -> None:
    rows = list(gaussian(sum(LENGTHS), 24).bfloat16().float().split(LENGTHS))
    tight, loose = moments(padded(rows)), moments(padded(rows, pad=9))
    frames = padded(rows)
    with torch.autocast("cpu", torch.bfloat16):
        half = moments(Frames(frames.x.bfloat16(), frames.lens))
    for name, (total, count) in tight.items():
        assert total.dtype == torch.float64
        for other in (loose[name], half[name]):
            torch.testing.assert_close(other.total, total, rtol=1e-12, atol=1e-9)
            assert int(other.count) == int(count)


def test_moments_carry_no_gradient() -> None:
    x = gaussian(2, 5, 3).requires_grad_()
    logs = moments(Frames(x, torch.tensor([5, 4])))
    assert not any(s.total.requires_grad for s in logs.values())
    assert all(s.total.ndim for s in logs.values())  # so that no summary takes them for scalars


def test_noise_is_healthy() -> None:
    found = of_rows(list(gaussian(4000, 64).split(400)))
    assert found["std_l2"] == pytest.approx(found["std_l2_healthy"], rel=0.02)
    assert found["mean_cos"] == pytest.approx(0, abs=0.01)
    assert found["rankme"] > 60


def test_one_and_the_same_frame_is_a_collapse() -> None:
    found = of_rows([gaussian(16).expand(40, 16), gaussian(16).expand(30, 16)])
    assert found["std_l2"] == pytest.approx(0, abs=1e-6)
    assert found["mean_cos"] == pytest.approx(1)
    assert found["rankme"] == pytest.approx(1, abs=0.01)


def test_mean_cos_pairs_only_different_utterances() -> None:
    a, b, c = torch.eye(3)
    found = of_rows([a.expand(50, 3), b.expand(5, 3), c.expand(20, 3)])
    assert found["mean_cos"] == pytest.approx(0, abs=1e-12)


def test_equal_singular_values_give_the_dimension() -> None:
    z = torch.linalg.qr(gaussian(200, 16).double()).Q
    assert effective_rank(z.T @ z) == pytest.approx(16, rel=1e-3)


def test_a_common_mean_hides_the_rank_unless_centred() -> None:
    z = gaussian(512, 64) @ gaussian(64, 128, seed=1) / 8 + 20
    found = of_rows([z[:300], z[300:]])
    assert found["rankme"] < 10 < 45 < found["rankme_centred"] <= 65


def test_what_the_sample_is_too_small_for_is_left_out() -> None:
    assert of_rows([gaussian(20, 16)]).keys() == {"std_l2", "std_l2_healthy"}
    assert of_rows([gaussian(32, 16)]).keys() == NAMES - {"mean_cos"}
    assert of_rows([gaussian(10, 16), gaussian(10, 16)]).keys() == {
        "std_l2",
        "std_l2_healthy",
        "mean_cos",
    }
    assert of_rows([gaussian(1, 16)]) == {}
    assert health({"loss": Sum(torch.ones(()), torch.ones(()))}) == {}


def test_frames_that_are_not_finite_give_nan_and_no_error() -> None:
    rows = [gaussian(40, 4), gaussian(40, 4, seed=1)]
    rows[0][3, 2] = math.inf
    found = of_rows(rows)
    assert all(math.isnan(found[name]) for name in NAMES - {"std_l2_healthy"})


NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {"conv_dims": (8,) * 7, "dim": 16, "layers": 1, "heads": 2, "ffn": 16}
    | {"pos_kernel": 8, "pos_groups": 4},
    "wav2vec-tiny": {"conv_dims": (6,) * 5, "dim": 6, "layers": 2, "context_kernels": (2, 3)},
}


def build(cls: type[Objective], name: str) -> Objective:
    torch.manual_seed(0)
    return cls(build_backbone(preset(name, **NETWORKS[name])), cls.Config())


def batch_of(objective: Objective, *, train: bool) -> Batch:
    collate = Collator(objective.backbone.geometry, objective.plan_fn(), seed=3, train=train)
    examples = []
    for row, samples in enumerate((16000, 9000, 12000)):
        wave = np.random.default_rng(row).standard_normal(samples).astype(np.float32) * 0.1
        examples.append(Example(Utterance(f"u{row}", "-", samples, 16000), wave))
    return collate(examples, epoch=0)


@pytest.mark.parametrize(("cls", "name"), [(Wav2Vec2, "tiny"), (Wav2Vec, "wav2vec-tiny")])
def test_objectives_tell_it_at_evaluation(cls: type[Objective], name: str) -> None:
    objective = build(cls, name)
    training = objective.train()(batch_of(objective, train=True)).logs
    assert not any(key.startswith("context_") for key in training)
    assert not NAMES & objective.summary(training).keys()

    batch = batch_of(objective, train=False)
    contexts: list[Frames] = []
    run = objective.eval().backbone.context

    def kept(*args: Any, **kwargs: Any) -> Frames:
        contexts.append(run(*args, **kwargs))
        return contexts[-1]

    objective.backbone.context = kept  # type: ignore[method-assign]
    logs = objective(batch).logs
    (context,) = contexts  # the one pass of the loss, masked where it masks
    rows = [x[:length].detach() for x, length in zip(context.x, context.lens, strict=True)]
    found = objective.summary(logs)
    assert {k: found[k] for k in NAMES} == pytest.approx(direct(rows), rel=1e-3)


def test_code_usage_is_the_share_of_codes_chosen() -> None:
    objective = build(Wav2Vec2, "tiny")
    hits = torch.tensor([[5, 0, 0, 1], [0, 0, 9, 0]])
    scalars = objective.summary({"code_hist": Sum(hits, torch.tensor(9))})
    assert scalars["code_usage"] == 3 / 8
    train, valid = (
        objective.train(mode)(batch_of(objective, train=mode)).logs for mode in (True, False)
    )
    for logs in (train, valid):
        assert 0 < objective.summary(logs)["code_usage"] <= 1
