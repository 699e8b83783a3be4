"""Checkpoints: complete or not there; damage is named and passed over; no silent restart."""

import json
import logging
import os
import pickle
import shutil

import pytest
import torch

from speechssl.engine.checkpoint import CheckpointStore, Saved, load_part
from speechssl.errors import CheckpointError
from speechssl.types import Progress

PLAIN = {"kind": "plain", "zero_stage": 0}
CONFIG = {"optim": {"lr": 0.1, "steps": 9}, "data": {"train": "a"}, "run": {"out": "x"}}


def store_at(root, keep=2, engine=PLAIN, config=CONFIG) -> CheckpointStore:
    return CheckpointStore(root / "ckpt", keep, engine, config)


def save(store, step, best_step=None):
    def write(folder):
        (folder / "shards").mkdir()
        torch.save({"step": torch.tensor(step)}, folder / "shards" / "a.pt")
        (folder / "b.bin").write_bytes(os.urandom(999))

    progress = Progress(step=step, max_steps=9, best=None, best_step=best_step)
    return store.save(Saved(progress, {"loss": [0.1, 3.0]}), write)


def load(store, resume="auto"):
    seen = []
    saved = store.load(resume, lambda folder: seen.append(folder.name))
    return saved, seen


def test_round_trip(tmp_path):
    store = store_at(tmp_path)
    save(store, 5)
    saved, seen = load(store_at(tmp_path))
    assert saved.progress == Progress(step=5, max_steps=9)
    assert saved.window == {"loss": [0.1, 3.0]}
    assert seen == ["step_00000005"]
    assert (tmp_path / "ckpt" / "latest").read_text().strip() == "step_00000005"


def test_a_step_can_be_saved_again(tmp_path):
    store = store_at(tmp_path)
    assert save(store, 5) == save(store, 5)
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == ["latest", "step_00000005"]
    assert load(store_at(tmp_path))[1] == ["step_00000005"]


def test_rotation_keeps_newest_and_best(tmp_path):
    store = store_at(tmp_path)
    for step in range(1, 6):
        save(store, step, best_step=2)
    kept = sorted(f.name for f in store.folders())
    assert kept == [f"step_0000000{n}" for n in (2, 4, 5)]


DAMAGE = {
    "deleted": lambda file: file.unlink(),
    "emptied": lambda file: file.write_bytes(b""),
    "halved": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "flipped": lambda file: file.write_bytes(
        bytes([*file.read_bytes()[:-9], file.read_bytes()[-9] ^ 1, *file.read_bytes()[-8:]])
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["shards/a.pt", "b.bin", "MANIFEST.json"])
def test_damage_falls_back_and_names_the_file(tmp_path, caplog, name, damage):
    store = store_at(tmp_path)
    save(store, 3)
    DAMAGE[damage](save(store, 6) / name)
    with caplog.at_level(logging.WARNING):
        saved, seen = load(store_at(tmp_path))
    assert saved.progress.step == 3
    assert seen == ["step_00000003"]
    assert name in caplog.text


def test_no_usable_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    store = store_at(tmp_path)
    for step in (3, 6):
        (save(store, step) / "b.bin").unlink()
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        load(store_at(tmp_path))


@pytest.mark.parametrize("content", [None, b"", b"step_00000099", b"\xff\xfe"])
def test_latest_is_only_a_hint(tmp_path, content):
    store = store_at(tmp_path)
    save(store, 3)
    latest = tmp_path / "ckpt" / "latest"
    latest.unlink() if content is None else latest.write_bytes(content)
    assert load(store_at(tmp_path))[0].progress.step == 3


def test_damaged_newest_can_be_written_again(tmp_path):
    store = store_at(tmp_path)
    (save(store, 3) / "b.bin").unlink()
    save(store, 3)
    assert load(store_at(tmp_path))[0].progress.step == 3


def test_failed_write_leaves_older_ones_and_no_rubbish(tmp_path):
    store = store_at(tmp_path)
    save(store, 3)

    def full(folder):
        (folder / "part").write_bytes(b"x")
        raise OSError("No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        store.save(Saved(Progress(step=6), {}), full)
    assert sorted(f.name for f in (tmp_path / "ckpt").iterdir()) == ["latest", "step_00000003"]


def test_left_over_of_a_killed_save_is_removed(tmp_path):
    save(store_at(tmp_path), 3)
    (tmp_path / "ckpt" / ".tmp-step_00000006").mkdir()
    assert load(store_at(tmp_path))[0].progress.step == 3
    assert not (tmp_path / "ckpt" / ".tmp-step_00000006").exists()


def test_too_little_space_is_refused_before_writing(tmp_path, monkeypatch):
    store = store_at(tmp_path)
    save(store, 3)
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="MB needed"):
        save(store, 6)


def test_resume_policy(tmp_path):
    assert load(store_at(tmp_path), "auto") == (None, [])
    assert load(store_at(tmp_path), "never") == (None, [])
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(store_at(tmp_path), "must")
    save(store_at(tmp_path), 3)
    with pytest.raises(CheckpointError, match="never"):
        load(store_at(tmp_path), "never")


def test_another_experiment_is_refused_by_key(tmp_path):
    save(store_at(tmp_path), 3)
    other = CONFIG | {"optim": {"lr": 0.2, "steps": 12}}
    with pytest.raises(CheckpointError, match=r"optim.lr was 0.1, now 0.2.*optim.steps was 9"):
        load(store_at(tmp_path, config=other))


def test_run_and_data_settings_may_change(tmp_path, caplog):
    save(store_at(tmp_path), 3)
    other = CONFIG | {"run": {"out": "y"}, "data": {"train": "b"}}
    with caplog.at_level(logging.WARNING):
        assert load(store_at(tmp_path, config=other))[0].progress.step == 3
    assert "data.train was 'a', now 'b'" in caplog.text
    assert "run.out" not in caplog.text


def rewrite(folder, **values):
    from speechssl.engine import checkpoint

    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["sha256"]
    manifest |= values
    manifest["sha256"] = checkpoint._seal(manifest)
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def test_other_number_of_processes(tmp_path):
    sharded = {"kind": "deepspeed", "zero_stage": 2}
    for engine, fine in ((PLAIN, True), (sharded, False)):
        root = tmp_path / engine["kind"]
        rewrite(save(store_at(root, engine=engine), 3), world_size=2)
        if fine:
            assert load(store_at(root, engine=engine))[0].progress.step == 3
        else:
            with pytest.raises(CheckpointError, match="start it with 2 processes"):
                load(store_at(root, engine=engine))


def test_other_engine_is_refused(tmp_path):
    save(store_at(tmp_path), 3)
    with pytest.raises(CheckpointError, match="written by engine"):
        load(store_at(tmp_path, engine={"kind": "deepspeed", "zero_stage": 0}))


class Payload:
    def __reduce__(self):
        return (os.mkdir, (os.environ["CANARY"],))


def test_pickled_code_never_runs(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(canary))
    torch.save({"x": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload()))
    for name in ("evil.pt", "evil.pkl", "missing.pt"):
        with pytest.raises(CheckpointError, match=name):
            load_part(tmp_path / name)
    assert not canary.exists()


def test_other_contents_behind_the_same_settings_are_refused(tmp_path):
    config = CONFIG | {"inputs": {"init.from": "aa", "data.train": ["bb"]}}
    save(store_at(tmp_path, config=config), 3)
    assert load(store_at(tmp_path, config=config))[0].progress.step == 3
    other = config | {"inputs": {"init.from": "cc", "data.train": ["dd"]}}
    with pytest.raises(CheckpointError, match=r"contents of data.train and init.from.*run.out"):
        load(store_at(tmp_path, config=other))


def test_settings_that_another_version_had_or_has_are_only_told(tmp_path, caplog):
    save(store_at(tmp_path), 3)
    other = CONFIG | {"optim": {"lr": 0.1, "steps": 9, "new": 1}, "inputs": {"init.from": "aa"}}
    with caplog.at_level(logging.WARNING):
        assert load(store_at(tmp_path, config=other))[0].progress.step == 3
    assert "optim.new was None, now 1" in caplog.text


def test_what_is_due_and_how_ties_stand_survive(tmp_path):
    progress = Progress(step=3, max_steps=9, best=0.5, best_ties=(0.25, 7.0), best_step=3)
    store = store_at(tmp_path)
    store.save(Saved(progress, {}, validation_due=True), lambda folder: None)
    assert load(store_at(tmp_path))[0] == Saved(progress, {}, validation_due=True)
    manifest = json.loads((tmp_path / "ckpt" / "step_00000003" / "MANIFEST.json").read_text())
    assert {"speechssl", "torch", "python"} <= manifest["versions"].keys()


def test_the_commit_is_that_of_the_checkout_itself_or_nothing(tmp_path):
    from speechssl.engine.provenance import git_commit

    assert git_commit(tmp_path) == ""
    (tmp_path / ".git").write_text("gitdir: nowhere")
    assert git_commit(tmp_path) == ""
