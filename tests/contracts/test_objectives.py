"""What every objective must keep, run over every file found in the objective folders.

Parts that are random in the forward pass by design (dropout) are off; the diversity term of
wav2vec 2.0 and the mixing of WavLM are off where additivity is tested, because they are properties
of a whole micro-batch.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from speechssl import lookup
from speechssl.data.collate import Collator
from speechssl.data.dataset import Example
from speechssl.data.tokens import Characters
from speechssl.errors import ConfigError
from speechssl.models.backbone import build_backbone
from speechssl.models.bundle import load_bundle, save_bundle
from speechssl.models.presets import preset
from speechssl.objectives.base import Objective
from speechssl.objectives.masking import SpanMask
from speechssl.types import Batch, Progress, Utterance

NAMES = sorted(lookup.names())
VOCABULARY = ["<pad>", "|", "A", "B", "C"]
SPEAKERS = ["s0", "s1", "s2"]
CLUSTERS = [f"c/{k}" for k in range(6)]
TRANSFORMER = {
    "conv_dims": (24,) * 7,
    "dim": 32,
    "layers": 2,
    "heads": 2,
    "ffn": 48,
    "pos_kernel": 8,
    "pos_groups": 4,
    "dropout": 0.0,
}
AGGREGATOR = {
    "conv_dims": (24,) * 5,
    "dim": 24,
    "layers": 2,
    "context_kernels": (2, 3),
}
#: Preset and sizes of those that do not train the small transformer.
BACKBONES = {
    "apc": ("gru-tiny", {"conv_dims": (24,) * 7, "dim": 32, "layers": 2, "dropout": 0.0}),
    "w2vbert": (
        "tiny",
        TRANSFORMER | {"block": "conformer", "block_kernel": 5, "block_dropout": 0.0},
    ),
    "wav2vec": ("wav2vec-tiny", AGGREGATOR),
}
OVERRIDES = {
    "apc": {"mel_bins": 20},
    "bestrq": {"codebooks": 2, "codes": 16, "mask": SpanMask(0.5, 3)},
    "data2vec": {"mask": SpanMask(0.5, 3), "top_layers": 2},
    "dinosr": {"mask": SpanMask(0.5, 3), "top_layers": 2, "codes": 16},
    "hubert": {"labels_per_frame": 2, "final_dim": 16},
    "simclr": {"view_frames": 8, "projector": (16,)},
    "tera": {"mel_bins": 20, "mask": SpanMask(0.3, 3)},
    "w2vbert": {
        "num_negatives": 10,
        "diversity_weight": 0.0,
        "final_dim": 16,
        "codes": 24,
        "code_dim": 16,
    },
    "wav2vec2": {"num_negatives": 10, "diversity_weight": 0.0, "final_dim": 16, "code_dim": 16},
    "wavlm": {"labels_per_frame": 2, "final_dim": 16, "mix_prob": 0.0},
}
#: Utterances of a batch are each other's negatives: the loss of one alone is not defined.
ACROSS_UTTERANCES = {"simclr"}


def build(name: str, **overrides) -> Objective:
    torch.manual_seed(0)
    cls = lookup.find(name, Objective)
    kind, sizes = BACKBONES.get(name, ("tiny", TRANSFORMER))
    classes = {"text": VOCABULARY, "speaker": SPEAKERS, "labels": CLUSTERS, None: ()}
    return cls(
        build_backbone(preset(kind, **sizes)),
        cls.Config(**OVERRIDES.get(name, {}) | overrides),
        classes[cls.classes_from],
    )


def batch_of(objective: Objective, rows: list[int], *, train: bool = True) -> Batch:
    collate = Collator(
        objective.backbone.geometry,
        objective.plan_fn(),
        seed=3,
        train=train,
        tokenizer=Characters(VOCABULARY) if objective.classes_from == "text" else None,
        speaker_index=(
            {s: i for i, s in enumerate(SPEAKERS)} if objective.classes_from == "speaker" else None
        ),
        labels_per_frame=objective.labels_per_frame if objective.classes_from == "labels" else 0,
    )
    examples = []
    for row in rows:
        rng = np.random.default_rng(row)
        samples = 9000 + 2500 * row
        wave = (rng.standard_normal(samples) * 0.1).astype(np.float32)
        utterance = Utterance(
            f"u{row}",
            "-",
            samples,
            16000,
            text=("AB", "BC A", "C", "A B A")[row],
            speaker=f"s{row % 3}",
        )
        frames = objective.backbone.geometry.frames(samples)
        labels = rng.integers(len(CLUSTERS), size=(frames, objective.labels_per_frame))
        examples.append(Example(utterance, wave, labels))
    return collate(examples, epoch=0)


def started(objective: Objective) -> Objective:
    objective.train()
    objective.begin_step(Progress(step=5, max_steps=100))
    return objective


def gradients(objective: Objective, batches: list[Batch]) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    for batch in batches:
        objective(batch).total.backward()
    return {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_finite_and_counts_what_the_plan_announced(name: str):
    objective = started(build(name))
    batch = batch_of(objective, [0, 1, 2, 3])
    loss = objective(batch)
    assert torch.isfinite(loss.total)
    assert int(loss.count) == batch.num_targets > 0
    assert loss.total.ndim == 0
    for key, value in loss.logs.items():
        assert not value.total.requires_grad, key
    summary = objective.summary(loss.logs)
    assert summary
    assert all(np.isfinite(v) for v in summary.values())


@pytest.mark.parametrize("name", sorted(set(NAMES) - ACROSS_UTTERANCES))
def test_a_batch_is_the_sum_of_its_utterances(name: str):
    objective = started(build(name))
    rows = [0, 1, 2, 3]
    together = batch_of(objective, rows)
    singles = [batch_of(objective, [r]) for r in rows]
    total = sum(float(objective(b).total.detach()) for b in singles)
    assert float(objective(together).total.detach()) == pytest.approx(total, rel=1e-5)
    assert together.num_targets == sum(b.num_targets for b in singles)
    one, parts = gradients(objective, [together]), gradients(objective, singles)
    assert one.keys() == parts.keys()
    scale = max(float(g.abs().max()) for g in one.values())
    for key in one:
        torch.testing.assert_close(one[key], parts[key], atol=1e-5 * scale, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_order_and_padding_of_a_batch_change_nothing(name: str):
    objective = started(build(name))
    straight = float(objective(batch_of(objective, [0, 1, 2])).total.detach())
    shuffled = float(objective(batch_of(objective, [2, 0, 1])).total.detach())
    assert straight == pytest.approx(shuffled, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_everything_that_should_learn(name: str):
    objective = started(build(name))
    found = gradients(objective, [batch_of(objective, [0, 1, 2, 3])])
    wanted = {n for n, p in objective.named_parameters() if p.requires_grad}
    assert wanted <= found.keys()
    frozen = getattr(objective.cfg, "frozen", False)
    backbone = [n for n in found if n.startswith("backbone.")]
    assert bool(backbone) is not frozen
    assert any(float(found[n].abs().max()) > 0 for n in (found if frozen else backbone))


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_loss(name: str):
    values = set()
    for _ in range(2):
        objective = started(build(name))
        values.add(float(objective(batch_of(objective, [0, 1, 2])).total.detach()))
    assert len(values) == 1


@pytest.mark.parametrize("name", NAMES)
def test_autocast_stays_close_to_full_precision(name: str):
    objective = started(build(name))
    batch = batch_of(objective, [0, 1, 2, 3])
    full = float(objective(batch).total.detach())
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(batch)
    assert half.total.dtype == torch.float32
    assert float(half.total.detach()) == pytest.approx(full, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_few_updates_on_one_batch_lower_the_loss(name: str):
    objective = started(build(name))
    batch = batch_of(objective, [0, 1, 2, 3])
    params = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=2e-3)
    losses = []
    for _ in range(15):
        loss = objective(batch)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
    assert min(losses[-3:]) < 0.97 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_fields_it_needs_are_in_its_batches_and_missed_when_absent(name: str):
    objective = started(build(name))
    batch = batch_of(objective, [0, 1])
    for field in objective.needs:
        assert getattr(batch, field) is not None
        with pytest.raises(ConfigError, match=f"{type(objective).__name__} needs .*'{field}'"):
            objective.check(replace(batch, **{field: None}))
    objective.check(batch)


@pytest.mark.parametrize("name", NAMES)
def test_a_filler_runs_and_gives_a_finite_loss(name: str):
    objective = started(build(name))
    loss = objective(batch_of(objective, []))
    assert torch.isfinite(loss.total)
    (loss.total * 0.0).backward()


@pytest.mark.parametrize("name", NAMES)
def test_model_folder_gives_the_same_loss_back(name: str, tmp_path):
    objective = build(name).eval()
    save_bundle(tmp_path / "model", objective, card={})
    loaded = load_bundle(tmp_path / "model").objective
    assert loaded is not None
    batch = batch_of(objective, [0, 1], train=False)
    with torch.no_grad():
        assert float(loaded.eval()(batch).total) == float(objective(batch).total)
    assert loaded.classes == objective.classes


@pytest.mark.parametrize("name", NAMES)
def test_it_names_its_source(name: str):
    cls = lookup.find(name, Objective)
    text = (cls.__doc__ or "") + (inspect.getmodule(cls).__doc__ or "")
    assert "arXiv" in text or "ICML" in text


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'speaker'"):
        lookup.find("speakr", Objective)
