"""`speechssl export`: a model as an ONNX graph, checked against PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechssl.interop.onnx import Check


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl export",
        description="Write a model as an ONNX graph: waveforms of any number and length in; CTC "
        "log-probabilities, speaker scores or features out. It is run by ONNX Runtime at several "
        "lengths beside PyTorch, and written only where both agree.",
    )
    p.add_argument("model", help="model folder, hub id, or fairseq or torchaudio file")
    p.add_argument("out", help="file to write, name.onnx")
    p.add_argument("--layer", type=int, help="features of this layer (0 = input of the first)")
    p.add_argument(
        "--int8", action="store_true", help="also name.int8.onnx, quantized, with its difference"
    )
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    args = parser().parse_args(argv)
    from speechssl.errors import ConfigError
    from speechssl.interop.onnx import Portable, export, quantize
    from speechssl.models.bundle import load

    out = Path(args.out)
    if out.suffix != ".onnx":
        raise ConfigError(f"out: got '{out}', expected a name that ends in .onnx")
    module = Portable(load(args.model), args.layer)
    checks = export(module, out)
    print(f"{args.model}: wave (B, S), lens (B,) -> {module.output}, frames")
    _table(out, checks)
    if args.int8:
        small = out.with_suffix(".int8.onnx")
        _table(small, quantize(module, out, small))
    print(f"next: onnxruntime.InferenceSession('{out}').run(None, {{'wave': ..., 'lens': ...}})")
    return 0


def _table(path: Path, checks: Sequence[Check]) -> None:
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB) beside PyTorch, random audio:")
    classes = any(one.other_class is not None for one in checks)
    print(f"  {'samples':<22} {'max abs':>9} {'max rel':>9}{'  other class' if classes else ''}")
    for one in checks:
        last = f"  {one.other_class:11.2%}" if one.other_class is not None else ""
        samples = ", ".join(map(str, one.samples))
        print(f"  {samples:<22} {one.max_abs:9.2e} {one.max_rel:9.2e}{last}")
