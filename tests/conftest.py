"""What every test starts from: one thread, known seeds, no network, real speech where it lies."""

import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # tests marked gpu start processes of their own
os.environ.setdefault("MPLBACKEND", "agg")

import torch

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _known_seeds():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - third-party code still draws from it
    torch.manual_seed(1)


@pytest.fixture(autouse=True)
def _own_log_level():
    """A command line sets it by rank, for the whole process."""
    log = logging.getLogger("speechssl")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_speech() -> Path:
    """Folder of real corpora (`so762/manifest.jsonl` and others); skips where there is none."""
    given = os.environ.get("SPEECHSSL_TEST_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real speech: {folder} is no folder (set SPEECHSSL_TEST_DATA)")
    return folder
