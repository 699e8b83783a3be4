"""`speechssl convert`: models from and to other toolkits, each time with a numeric check."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl convert",
        description="Convert a model of the wav2vec 2.0 family. Read are our folders, Hugging "
        "Face folders and hub ids, fairseq checkpoints (.pt, fairseq is not needed) and torchaudio "
        "state dicts. The result is run beside torchaudio's implementation and the differences are "
        "told; the exit code is 1, and nothing is written, when they are more than rounding.",
    )
    p.add_argument("source", help="model folder, hub id or checkpoint file")
    p.add_argument("out", help="folder (speechssl) or file (fairseq, torchaudio) to write")
    p.add_argument(
        "--to",
        choices=("speechssl", "fairseq", "torchaudio"),
        default="speechssl",
        help="speechssl is the Hugging Face layout, which transformers opens (%(default)s)",
    )
    p.add_argument("--heads", type=int, help="attention heads of a torchaudio file (dim / 64)")
    p.add_argument("--norm", choices=("pre", "post"), help="of the blocks of a torchaudio file")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb; exit code 1 when the numeric check fails."""
    args = parser().parse_args(argv)
    from speechssl.errors import ConfigError
    from speechssl.interop import convert
    from speechssl.interop.foreign import read_foreign
    from speechssl.models.bundle import load, save_bundle

    source = Path(args.source)
    if source.is_file():
        foreign = read_foreign(source, args.heads, args.norm)
        model, told = convert.as_model(foreign, args.source)
        kind = foreign.layout
        told += [f"assumed: {line}" for line in foreign.assumed]
        told += [f"left out: {', '.join(foreign.dropped)}"] if foreign.dropped else []
    else:
        if args.heads is not None or args.norm is not None:
            raise ConfigError("--heads and --norm are for torchaudio files; a folder tells them")
        bundle = load(args.source)
        model, told, kind = bundle.objective or bundle.backbone, [], "model folder"
    backbone = getattr(model, "backbone", model)
    differences = convert.compare_with_torchaudio(model)
    passed = all(one.passes for one in differences)
    if passed and args.to == "speechssl":
        save_bundle(args.out, model, card={"converted from": f"{kind} {source.name}"})
    elif passed:
        left_out = convert.write_foreign(model, args.to, args.out)
        told += [f"no place in {args.to}: {', '.join(left_out)}"] if left_out else []
    cfg = backbone.cfg
    tensors = len(model.state_dict())
    print(
        f"{args.source}: {kind}, {cfg.layers} {cfg.norm}-norm layers of {cfg.dim}, convolutions "
        f"with {cfg.conv_norm} norm, {tensors} tensors"
    )
    for line in told:
        print(f"  {line}")
    print("beside torchaudio's network, random audio:")
    print(f"  {'state':<10} {'input':<9} {'max abs':>9} {'max rel':>9}")
    for one in differences:
        mark = "" if one.passes else "  differs"
        where = "padded" if one.padded else "alone"
        print(f"  {one.state:<10} {where:<9} {one.max_abs:9.2e} {one.max_rel:9.2e}{mark}")
    if not passed:
        print(f"differences above {convert.TOLERANCE:g}: nothing written")
        return 1
    print(f"equal up to rounding; {args.to}: {args.out}")
    if args.to == "torchaudio":
        classes = len(getattr(model, "classes", ()))
        print("open it with torchaudio.models.wav2vec2_model(")
        for key, value in convert.torchaudio_sizes(cfg, classes or None).items():
            print(f"  {key}={value!r},")
        print(")")
    return 0
