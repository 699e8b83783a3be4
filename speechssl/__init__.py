"""Self-supervised learning from raw speech: pre-train, fine-tune, extract, evaluate.

`load` a model folder, `Extractor` for features with frame times, `transcribe` for text.
Nothing heavy is imported until one of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechssl.extract.extractor import Extractor
    from speechssl.extract.transcribe import transcribe
    from speechssl.models.bundle import load

__version__ = "0.1.0"
__all__ = ["Extractor", "__version__", "load", "transcribe"]

_HOME = {
    "load": "speechssl.models.bundle",
    "Extractor": "speechssl.extract.extractor",
    "transcribe": "speechssl.extract.transcribe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'speechssl' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
