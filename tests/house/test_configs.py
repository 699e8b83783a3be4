"""Every configuration that is shipped loads, and says only what it changes."""

import pytest
import yaml

from speechssl.config import resolve
from speechssl.models.presets import preset
from tests.house.source import ROOT, place

CONFIGS = sorted((ROOT / "recipes").rglob("conf/*.yaml"))


def with_base(file):
    """A file that names no objective goes on top of the one its name starts with.

    Where there is a `_common.yaml`, all go on top of that which do not begin with a bar themselves.
    """
    common = file.with_name("_common.yaml")
    if file == common:
        return [common, file.with_name("bestrq.yaml")]
    if "name:" in file.read_text(encoding="utf-8"):
        return [common, file] if common.exists() and file.stem[0] != "_" else [file]
    return [file.with_name(file.stem.partition("_")[0] + ".yaml"), file]


@pytest.mark.parametrize("file", CONFIGS, ids=place)
def test_shipped_config_loads(file):
    words = [word for one in with_base(file) for word in ("--config", str(one))]
    config = resolve([*words, "--data.train", "train.jsonl", "--run.out", "exp/x"])
    assert config.optim.steps > config.optim.warmup_steps + config.optim.hold_steps
    assert config.data.update_sec >= config.data.batch_sec or config.data.workers == 0


@pytest.mark.parametrize("file", CONFIGS, ids=place)
def test_shipped_config_names_no_path(file):
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert "init" not in settings
    assert not {"train", "valid"} & set(settings.get("data", {}))
    assert "out" not in settings.get("run", {})


def test_librispeech_pretraining_is_the_published_base_set_up():
    config = resolve(["--config", str(ROOT / "recipes/librispeech/conf/pretrain.yaml")])
    assert config.backbone == preset("base")
    assert (config.optim.lr, config.optim.steps, config.optim.warmup_steps) == (5e-4, 400000, 32000)
    assert config.data.update_sec * 16000 == 64 * 1_400_000
