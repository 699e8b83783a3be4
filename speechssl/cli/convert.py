"""`speechssl convert`: models from and to other toolkits, each time with a numeric check."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechssl.interop.convert import Difference
    from speechssl.models.backbone import Backbone
    from speechssl.objectives.base import Objective


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl convert",
        description="Convert a model of the wav2vec 2.0 kind (wav2vec 2.0, HuBERT, WavLM, "
        "data2vec). Read are our folders, Hugging Face folders and hub ids, fairseq checkpoints "
        "(.pt, fairseq is not needed) and torchaudio state dicts. The result is run beside the "
        "other toolkit's implementation and the differences are told; the exit code is 1, and "
        "nothing is written, when they are more than rounding.",
    )
    p.add_argument("source", help="model folder, hub id, checkpoint file or torchaudio:NAME")
    p.add_argument("out", help="folder (speechssl, hf) or file (fairseq, torchaudio) to write")
    p.add_argument(
        "--to",
        choices=("speechssl", "hf", "fairseq", "torchaudio"),
        default="speechssl",
        help="speechssl is the Hugging Face layout with our own settings beside it, hf the bare "
        "layout, of the family it came from (%(default)s)",
    )
    p.add_argument("--heads", type=int, help="attention heads of a torchaudio file (dim / 64)")
    p.add_argument("--norm", choices=("pre", "post"), help="of the blocks of a torchaudio file")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb; exit code 1 when the numeric check fails."""
    args = parser().parse_args(argv)
    from speechssl.errors import ConfigError
    from speechssl.interop import convert
    from speechssl.models.bundle import load, save_bundle
    from speechssl.models.formats.foreign import read_foreign
    from speechssl.models.formats.stored import as_model

    source = Path(args.source)
    if source.is_file():
        stored = read_foreign(source, args.heads, args.norm)
        model, kind, told = as_model(stored, args.source), stored.kind, list(stored.told)
        told += [f"left out: {', '.join(stored.dropped)}"] if stored.dropped else []
        if stored.objective:
            told.append(f"head: {stored.objective}")
    else:
        if args.heads is not None or args.norm is not None:
            raise ConfigError("--heads and --norm are for torchaudio files; a folder tells them")
        bundle = load(args.source)
        model, kind, told = bundle.objective or bundle.backbone, bundle.kind, []  # told by load
    family = (
        kind if args.to == "hf" and kind not in ("speechssl", "fairseq", "torchaudio") else None
    )
    card = {"converted from": f"{kind} {source.name}"}
    beside, differences = _differences(model, args.to, family)
    passed = all(one.passes for one in differences)
    if passed and args.to in ("speechssl", "hf"):
        save_bundle(args.out, model, card=card, family=family, plain=args.to == "hf")
    elif passed:
        layout = "fairseq" if args.to == "fairseq" else "torchaudio"
        left_out = convert.write_foreign(model, layout, args.out)
        told += [f"no place in {args.to}: {', '.join(left_out)}"] if left_out else []
    cfg = getattr(model, "backbone", model).cfg
    print(
        f"{args.source}: {kind}, {cfg.layers} {cfg.norm}-norm layers of {cfg.dim}, convolutions "
        f"with {cfg.conv_norm} norm, {len(model.state_dict())} tensors"
    )
    for line in told:
        print(f"  {line}")
    if differences:
        _table(beside, differences)
    if not passed:
        print(f"differences above {convert.TOLERANCE:g}: nothing written")
        return 1
    verdict = "equal up to rounding" if differences else f"not compared: {beside}"
    print(f"{verdict}; {args.to}: {args.out}")
    if args.to == "torchaudio":
        classes = len(getattr(model, "classes", ()))
        sizes = convert.torchaudio_sizes(cfg, classes or None)
        kind = "wavlm" if "encoder_num_buckets" in sizes else "wav2vec2"
        print(f"open it with torchaudio.models.{kind}_model(")
        for key, value in sizes.items():
            print(f"  {key}={value!r},")
        print(")")
    return 0


def _differences(
    model: Objective | Backbone, to: str, family: str | None
) -> tuple[str, list[Difference]]:
    """What computed the same audio, or why nothing did, and how far apart the results are."""
    from speechssl.interop import convert
    from speechssl.models.bundle import save_bundle
    from speechssl.models.formats import hf_config

    cfg = getattr(model, "backbone", model).cfg
    in_torchaudio = convert.has_counterpart(cfg, "torchaudio")
    in_transformers = find_spec("transformers") is not None and hf_config.family(cfg) is not None
    if in_transformers and (to == "hf" or not in_torchaudio):
        with tempfile.TemporaryDirectory() as scratch:
            save_bundle(scratch, model, card={}, family=family, plain=True)
            return "transformers", convert.compare_with_transformers(model, scratch)
    if in_torchaudio:
        return "torchaudio", convert.compare_with_torchaudio(model)
    if hf_config.family(cfg) is None:
        return "no other toolkit has this network", []
    return "torchaudio does not have this network; pip install transformers", []


def _table(beside: str, differences: Sequence[Difference]) -> None:
    print(f"beside the network of {beside}, random audio:")
    print(f"  {'state':<10} {'input':<9} {'max abs':>9} {'max rel':>9}")
    for one in differences:
        mark = "" if one.passes else "  differs"
        where = "padded" if one.padded else "alone"
        print(f"  {one.state:<10} {where:<9} {one.max_abs:9.2e} {one.max_rel:9.2e}{mark}")
