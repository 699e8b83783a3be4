"""`speechssl probe`: what frozen features know, beside log-mel and the same network untrained."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from speechssl.cli.inputs import add_model_options
from speechssl.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

    from speechssl.data.skips import Skips
    from speechssl.models.backbone import Backbone
    from speechssl.types import Utterance

BASELINES = ("logmel", "random")


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl probe",
        description="A linear classifier on features pooled over time, for each model, for the "
        "same architecture with random weights, and for log-mel. The regularisation, and the "
        "layer with --layer best, are chosen inside the training data.",
    )
    p.add_argument("models", nargs="+", metavar="MODEL", help="model folders or hub ids")
    p.add_argument("--train", nargs="+", required=True, metavar="MANIFEST", help="to fit on")
    p.add_argument(
        "--test", nargs="+", default=(), metavar="MANIFEST", help="to score on, each by itself"
    )
    p.add_argument("--label", default="speaker", help="manifest key to predict (%(default)s)")
    p.add_argument(
        "--group",
        metavar="KEY",
        help="manifest key: leave one value of it out in turn; with --test, choose layer and "
        "regularisation on values of it that the inner fit has not seen",
    )
    p.add_argument(
        "--baseline", default="logmel,random", help="of logmel, random, none (%(default)s)"
    )
    p.add_argument("--layer", choices=("best", "all"), default="best", help="(%(default)s)")
    p.add_argument(
        "--classifier",
        choices=("logistic", "weighted", "lda"),
        default="logistic",
        help="logistic regression on a layer, on a learnt weighted sum of all layers (SUPERB's "
        "probe, with --pool mean), or shrinkage LDA on a layer, the fastest (%(default)s)",
    )
    p.add_argument("--pool", choices=("mean", "mean_std"), default="mean_std", help="(%(default)s)")
    p.add_argument("--seed", type=int, default=1, help="of random weights and inner splits")
    p.add_argument("--out", help="results as .json")
    add_model_options(p)
    p.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return p


@dataclass(frozen=True)
class Labelled:
    """Utterances with the class to predict and, where asked for, the group each belongs to."""

    utterances: list[Utterance]
    labels: list[str]
    groups: list[str] | None


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    args = parser().parse_args(argv)
    baselines = _baselines(args.baseline)
    if not args.test and not args.group:
        raise ConfigError("probe: give --test MANIFEST, or --group KEY (leave one out), or both")
    from speechssl.cli.inputs import pick_device, tell_skipped
    from speechssl.data.skips import Skips

    args.device = pick_device(args.device)
    skips = Skips()
    train = labelled(args.train, args.label, args.group)
    tests = {path: labelled([path], args.label, None) for path in args.test}
    rows = [
        {"system": name} | row
        for name, backbone in systems(args.models, baselines, args.seed, plugins=args.plugins)
        for row in probe(backbone.to(args.device).eval(), train, tests, args, skips)
    ]
    scored = [label for part in tests.values() or [train] for label in part.labels]
    tell_skipped(skips)
    results = {
        "label": args.label,
        "group": args.group,
        "pool": args.pool,
        "classifier": args.classifier,
        "layer": args.layer,
        "seed": args.seed,
        "train": {"manifests": list(args.train), "utterances": len(train.utterances)},
        "test": {"manifests": list(args.test), "utterances": len(scored)},
        "classes": len(set(train.labels)),
        "chance": _commonest(scored),
        "results": rows,
    }
    if args.out:
        from speechssl.atomic import write_text

        write_text(args.out, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(results, ensure_ascii=False) if args.json else table(results))
    return 0


def systems(
    models: Sequence[str], baselines: Sequence[str], seed: int, *, plugins: bool = False
) -> Iterator[tuple[str, Backbone]]:
    """Name and frozen network of everything compared; twins of equal shape come once."""
    import torch

    from speechssl.config import FREE_BACKBONE_KEYS
    from speechssl.models.backbone import build_backbone
    from speechssl.models.bundle import load
    from speechssl.models.presets import preset

    shapes = {}
    for name in models:
        backbone = load(name, plugins=plugins).backbone
        yield name, backbone
        settings = asdict(backbone.cfg).items()
        shape = tuple((key, value) for key, value in settings if key not in FREE_BACKBONE_KEYS)
        shapes.setdefault(shape, backbone.cfg)
    if "random" in baselines:
        for cfg in shapes.values():
            torch.manual_seed(seed)
            yield f"random ({cfg.preset})", build_backbone(cfg)
    if "logmel" in baselines:
        yield "logmel", build_backbone(preset("logmel"))


def probe(
    backbone: Backbone,
    train: Labelled,
    tests: Mapping[str, Labelled],
    args: argparse.Namespace,
    skips: Skips,
) -> list[dict[str, Any]]:
    """Accuracies of one system: a row for each test manifest, times layers where asked for all."""
    from speechssl.downstream.probe import fit_probe, leave_one_group_out

    x, train = features(backbone, train, args, skips)
    heard = {path: features(backbone, test, args, skips) for path, test in tests.items()}
    for path, (_, test) in heard.items():
        unseen = sorted(set(test.labels) - set(train.labels))
        if unseen:
            raise DataError(
                f"probe: {len(unseen)} values of '{args.label}' in --test {path} are not in "
                f"--train, such as {unseen[:3]}; nobody can predict them"
            )
    settings: dict[str, Any] = {"classifier": args.classifier, "seed": args.seed}
    rows = []
    for layer in range(x.shape[1]) if args.layer == "all" else [None]:
        part = slice(None) if layer is None else slice(layer, layer + 1)
        shown: dict[str, Any] = {"layer": "best" if layer is None else layer, "dim": x.shape[2]}
        if args.layer == "best" and args.classifier == "weighted":
            shown["layer"] = "all"
        with _readable_errors(train):
            if not heard:
                assert train.groups is not None
                scores = leave_one_group_out(x[:, part], train.labels, train.groups, **settings)
                sizes = Counter(train.groups)
                accuracy = sum(scores[g] * sizes[g] for g in scores) / len(train.labels)
                ci95 = wilson(accuracy, len(train.labels))
                rows.append(shown | {"accuracy": accuracy, "per_group": scores, "ci95": ci95})
                continue
            fitted = fit_probe(x[:, part], train.labels, groups=train.groups, **settings)
        for path, (test_x, test) in heard.items():
            accuracy = fitted.score(test_x[:, part], test.labels)
            ci95 = wilson(accuracy, len(test.labels))
            rows.append(shown | {"test": path, "accuracy": accuracy, "ci95": ci95})
    return rows


def features(
    backbone: Backbone, data: Labelled, args: argparse.Namespace, skips: Skips
) -> tuple[np.ndarray, Labelled]:
    """Pooled states (N, L + 1, D or 2 D) and the utterances they are of, in the manifest's order.

    Audio that cannot be used is counted in `skips` and left out.
    """
    import numpy as np
    import torch

    from speechssl.cli.inputs import bar
    from speechssl.cli.scoring import batches
    from speechssl.downstream.probe import pooled

    def vectors() -> Iterator[tuple[int, np.ndarray]]:
        for places, batch in batches(backbone, data.utterances, args.batch_sec, skips, args.device):
            with torch.no_grad():
                frames = backbone(batch.wave, batch.wave_lens, layers=True)
            yield from zip(places, pooled(frames, args.pool), strict=True)

    found = dict(bar(vectors(), len(data.utterances), "features"))
    kept = sorted(found)
    if not kept:
        raise DataError("probe: none of the audio could be used: " + "; ".join(skips.lines()))
    groups = None if data.groups is None else [data.groups[i] for i in kept]
    chosen = Labelled([data.utterances[i] for i in kept], [data.labels[i] for i in kept], groups)
    return np.stack([found[i] for i in kept]), chosen


def labelled(paths: Sequence[str], label: str, group: str | None) -> Labelled:
    """The utterances of manifests with the values of two keys. Raises DataError where one lacks."""
    from speechssl.cli.assembly import read_manifests

    utterances = read_manifests(paths)
    labels = [_value(u, label) for u in utterances]
    groups = None if group is None else [_value(u, group) for u in utterances]
    if len(set(labels)) < 2:
        raise DataError(f"probe: all {len(labels)} utterances have the same '{label}'")
    return Labelled(utterances, labels, groups)


def _value(utterance: Utterance, key: str) -> str:
    value = utterance.extra.get(key, getattr(utterance, key, None))
    if value is None:
        raise DataError(
            f"probe: utterance '{utterance.id}' has no '{key}'; expected it on every line"
        )
    return str(value)


@contextmanager
def _readable_errors(train: Labelled) -> Iterator[None]:
    """What scikit-learn says when an inner split is left without a class or a group."""
    try:
        yield
    except ValueError as error:
        groups = "" if train.groups is None else f" in {len(set(train.groups))} groups"
        raise DataError(
            f"probe: {len(train.labels)} training utterances of {len(set(train.labels))} classes"
            f"{groups} are too few to choose settings inside them ({error}); expected several of "
            "each class, in at least 2 groups"
        ) from error


def wilson(share: float, count: int) -> list[float]:
    """95 % interval of a share of `count` trials (Wilson 1927)."""
    z = 1.959964
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return [max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)]


def table(results: dict[str, Any]) -> str:
    """Systems beside each other."""
    rows = results["results"]
    width = max(len(row["system"]) for row in rows)
    tests = len(results["test"]["manifests"]) > 1
    on = max(len(row.get("test", "")) for row in rows) + 2 if tests else 0
    in_turn = results["group"] and not results["test"]["manifests"]
    how = f", leaving out one {results['group']} in turn" if in_turn else ""
    lines = [
        f"{results['label']}: {results['classes']} classes, {results['test']['utterances']} test "
        f"utterances{how}; always the commonest class: {results['chance']:.1%}",
        f"{'system':<{width}}  {'test' if tests else '':<{on}}layer  accuracy  95 % interval",
    ]
    for row in rows:
        low, high = row["ci95"]
        lines.append(
            f"{row['system']:<{width}}  {row['test'] if tests else '':<{on}}{row['layer']!s:>5}  "
            f"{row['accuracy']:8.1%}  {low:.1%} to {high:.1%}"
        )
    return "\n".join(lines)


def _commonest(labels: Sequence[str]) -> float:
    return max(Counter(labels).values()) / len(labels)


def _baselines(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in BASELINES:
            raise ConfigError(f"--baseline: got '{name}', expected {', '.join(BASELINES)} or none")
    return names
