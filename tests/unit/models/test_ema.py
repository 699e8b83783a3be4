"""The teacher follows, and does nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from speechssl.models.blocks.ema import Teacher, annealed


def pair() -> tuple[nn.Module, Teacher]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    return student, Teacher(student)


def test_one_step_is_the_formula():
    student, teacher = pair()
    before = copy.deepcopy(teacher.network.state_dict())
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    student.train()(torch.randn(8, 3))  # moves the batch norm's statistics
    teacher.follow(student, 0.9)
    theirs = student.state_dict()
    parameters = dict(teacher.network.named_parameters())
    for name, value in teacher.network.state_dict().items():
        wanted = 0.9 * before[name] + 0.1 * theirs[name] if name in parameters else theirs[name]
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)
    teacher.copy(student)
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, theirs[name])


def test_small_steps_are_not_lost():
    student, teacher = pair()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    start = teacher.network[0].weight.clone()  # type: ignore[index, union-attr]
    for _ in range(1000):
        teacher.follow(student, 0.9999)
    moved = (teacher.network[0].weight - start).mean()  # type: ignore[index, union-attr]
    assert float(moved) == pytest.approx(1 - 0.9999**1000, rel=1e-3)


def test_it_never_trains():
    student, teacher = pair()
    whole = nn.ModuleList([student, teacher]).train()
    assert student.training
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert len(whole.state_dict()) == 2 * len(student.state_dict())


def test_decay_rises_to_its_end_and_stays():
    found = [annealed(0.999, 0.9999, 100, step) for step in (0, 50, 100, 1000)]
    assert found == pytest.approx([0.999, 0.99945, 0.9999, 0.9999])
    assert annealed(0.5, 0.9, 0, 0) == 0.9
