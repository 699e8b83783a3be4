"""`speechssl cluster`: k-means over frames, and manifests with a cluster label for every frame."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.atomic import write_text
from speechssl.errors import ConfigError

if TYPE_CHECKING:
    from speechssl.extract.frames import FrameSource
    from speechssl.types import Utterance

#: Of new clusters, where nothing else is asked for.
CLUSTERS, FIT_FRAMES, SEED = 100, 1_000_000, 1


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl cluster",
        description="Cluster the frames of the first manifest and label the frames of all: the "
        "targets of objective hubert. Started again, it goes on where it stopped; under torchrun "
        "or srun the labelling is shared out.",
    )
    p.add_argument("manifests", nargs="+", help="manifests (.jsonl); the first is clustered")
    p.add_argument("--out", required=True, help="folder to write")
    p.add_argument("--clusters", type=int, help=f"how many to make ({CLUSTERS})")
    p.add_argument(
        "--model", default=None, help="cluster a layer of this model (default: 39 MFCCs per 10 ms)"
    )
    p.add_argument("--layer", type=int, default=None, help="of --model, 0 to L, or from the end")
    p.add_argument(
        "--norm",
        choices=("none", "mean", "utterance"),
        default="none",
        help="of every utterance: mean 0, or variance 1 too (utterance), so that clusters tell "
        "less of the speaker (%(default)s, as published)",
    )
    p.add_argument(
        "--kmeans", default=None, help="label by the clusters in this folder instead of new ones"
    )
    p.add_argument(
        "--fit-frames",
        type=int,
        help=f"most frames to fit on; they are held in memory ({FIT_FRAMES})",
    )
    p.add_argument("--seed", type=int, help=f"of the sample and the starts ({SEED})")
    p.add_argument(
        "--shard-sec", type=float, default=36_000.0, help="audio per label file (%(default)s)"
    )
    from speechssl.cli.inputs import add_model_options

    add_model_options(p)
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb; exit code 3 when some of the audio could not be used."""
    args = parser().parse_args(argv)
    _check(args)
    from speechssl.cli.extract import place
    from speechssl.cli.inputs import bar, tell_skipped
    from speechssl.data.manifest import read_manifest, write_manifest
    from speechssl.data.skips import Skips
    from speechssl.extract.kmeans import FILE, KMeans
    from speechssl.extract.labels import (
        label_utterances,
        reject_degenerate,
        report,
        wait_for,
    )
    from speechssl.extract.shards import claim, fingerprint

    out, (rank, world) = Path(args.out), place()
    manifests = {out / Path(path).name: read_manifest(path) for path in args.manifests}
    source, model = _source(args)
    out.mkdir(parents=True, exist_ok=True)
    claim(
        out,
        {
            **source.about,
            "model": model,
            "clusters": args.clusters,
            "kmeans": args.kmeans,
            "seed": args.seed,
            "fit_frames": args.fit_frames,
            "shard_sec": args.shard_sec,
            "manifests": {path.name: fingerprint(us) for path, us in manifests.items()},
        },
    )
    if rank == 0 and not (out / FILE).exists():
        _clusters(args, source, next(iter(manifests.values()))).save(out)
    wait_for([out / FILE])
    kmeans, skips = KMeans.load(out), Skips()
    labelled = {
        path: label_utterances(
            path.with_suffix(""),
            utterances,
            kmeans,
            source,
            skips,
            shard_sec=args.shard_sec,
            rank=rank,
            world=world,
            shown=bar,
        )
        for path, utterances in manifests.items()
    }
    tell_skipped(skips)
    if rank:
        return 3 if skips.total else 0
    print(
        f"{out / FILE}: {kmeans.name}, {kmeans.about['frames']} frames, mean squared distance "
        f"{kmeans.inertia:.4g}"
    )
    found = {path.name: report(utterances) for path, utterances in labelled.items()}
    write_text(out / "labels.json", json.dumps(found, indent=2) + "\n")
    for path in labelled:
        print(_in_words(path, found[path.name]))
    first, *rest = labelled
    reject_degenerate(found[first.name])
    for path, utterances in labelled.items():
        write_manifest(path, utterances)
    print(
        f"next: speechssl train --objective.name hubert --data.train {first}"
        + (f" --data.valid {rest[0]}" if rest else "")
        + " --run.out DIR"
    )
    return 3 if skips.total else 0


def _check(args: argparse.Namespace) -> None:
    names = [Path(path).name for path in args.manifests]
    if len(set(names)) < len(names):
        raise ConfigError(f"manifests: two are called alike ({', '.join(names)}); rename one")
    if any(Path(args.out).resolve() == Path(path).resolve().parent for path in args.manifests):
        raise ConfigError(
            f"--out: {args.out} holds a manifest to be labelled, which would be written over; give "
            "another folder"
        )
    if (args.layer is None) is not (args.model is None):
        raise ConfigError("--model and --layer belong together: which layer of which model")
    new = ("clusters", "fit_frames", "seed")
    if args.kmeans and (given := [k for k in new if getattr(args, k) is not None]):
        options = ", ".join("--" + key.replace("_", "-") for key in given)
        raise ConfigError(f"{options}: of new clusters, but --kmeans brings them; leave it out")
    if args.kmeans:
        return
    for key, value in zip(new, (CLUSTERS, FIT_FRAMES, SEED), strict=True):
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.fit_frames < args.clusters:
        raise ConfigError(
            f"--fit-frames: got {args.fit_frames}, expected at least one for each of "
            f"{args.clusters} clusters"
        )


def _source(args: argparse.Namespace) -> tuple[FrameSource, str]:
    """What is clustered, and the model it comes from."""
    from speechssl.extract.frames import MfccFrames, ModelFrames

    if args.model is None:
        return MfccFrames(args.norm), ""
    from speechssl.cli.inputs import pick_device
    from speechssl.extract.extractor import Extractor
    from speechssl.models.bundle import load

    bundle = load(args.model, pick_device(args.device), plugins=args.plugins)
    extractor = Extractor(bundle, batch_sec=args.batch_sec)
    return ModelFrames(extractor, args.layer, args.norm), args.model


def _clusters(
    args: argparse.Namespace, source: FrameSource, utterances: Sequence[Utterance]
) -> Any:
    """New clusters, or those of --kmeans where they are of the same features."""
    from speechssl.cli.inputs import bar
    from speechssl.extract.kmeans import KMeans, fit

    if args.kmeans is None:
        # What cannot be read is told when it is labelled.
        return fit(
            source,
            utterances,
            args.clusters,
            max_frames=args.fit_frames,
            seed=args.seed,
            on_error=lambda one, error: None,
            shown=bar,
        )
    kmeans = KMeans.load(args.kmeans)
    for key, value in source.about.items():
        if kmeans.about.get(key) != value:
            raise ConfigError(
                f"--kmeans {args.kmeans}: its clusters are of {key} '{kmeans.about.get(key)}', "
                f"asked for is '{value}'; give the --model, --layer and --norm it was made with"
            )
    return kmeans


def _in_words(path: Path, found: dict[str, Any]) -> str:
    lines = [
        f"{path}: {found['frames']} labels, {found['labels_hz']:g} a second, perplexity "
        f"{found['perplexity']:.1f} of {found['clusters']}, {found['empty']} empty, the commonest "
        f"{found['top_share']:.1%}, {1000 * found['mean_sec']:.0f} ms each"
    ]
    for kind in ("phones", "words", "speakers"):
        if kind in found:
            q = found[kind]
            lines.append(
                f"  {kind}: PNMI {q['pnmi']:.3f}, purity {q['purity']:.3f}, cluster purity "
                f"{q['cluster_purity']:.3f}"
            )
    return "\n".join(lines)
