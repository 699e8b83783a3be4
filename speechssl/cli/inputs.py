"""What the verbs that use a model share: audio arguments, device, progress bar, skipped files."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from speechssl.errors import AudioError, ConfigError, DataError
from speechssl.types import Utterance

if TYPE_CHECKING:
    from speechssl.data.skips import Skips
    from speechssl.extract.lexicon import LanguageModel

T = TypeVar("T")
PLAIN_EVERY_SEC = 30.0  # of progress where there is no terminal to draw a bar on


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that runs a model: batch size, device, foreign objectives."""
    parser.add_argument(
        "--batch-sec", type=float, default=60.0, help="padded audio per batch (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument(
        "--plugins",
        action="store_true",
        help="run the code of another package that the model's objective names; for models you "
        "trust",
    )


def add_search_options(parser: argparse.ArgumentParser, several: bool) -> None:
    """How a CTC model is decoded; with `several`, weights of a language model may be a grid."""
    parser.add_argument(
        "--beam",
        type=int,
        help="candidates kept: 1 = best path, more = prefix search (default 1; with --lm 100)",
    )
    parser.add_argument(
        "--lm",
        metavar="FILE",
        help="search the words of this language model (ARPA, or KenLM binary with --lexicon)",
    )
    parser.add_argument(
        "--lexicon",
        metavar="FILE",
        help="the words to search, first on each line (default: --lm's)",
    )
    nargs, grid = ("+", "; of several, the best is told and used") if several else (None, "")
    for name, what in (
        ("--lm-weight", "the language model's share (default 1"),
        ("--word-score", "nats added for each word (default 0"),
    ):
        parser.add_argument(name, type=float, nargs=nargs, metavar="X", help=f"{what}{grid})")


def beam_of(args: argparse.Namespace) -> int:
    """The width that `add_search_options` read; the best path alone, or 100 with --lm."""
    if args.beam is not None:
        return args.beam
    return 100 if args.lm else 1


def language_models(args: argparse.Namespace) -> list[LanguageModel]:
    """What `add_search_options` read: none without --lm, several for a grid.

    Raises ConfigError for options that would do nothing.
    """
    given = {"--lexicon": args.lexicon, "--lm-weight": args.lm_weight}
    given["--word-score"] = args.word_score
    if args.lm is None:
        if idle := [name for name, value in given.items() if value is not None]:
            raise ConfigError(f"{' and '.join(idle)}: only with a language model; add --lm FILE")
        return []
    from speechssl.extract.lexicon import LanguageModel, lexicon_words

    words = lexicon_words(args.lexicon) if args.lexicon else ()

    def values(x: float | list[float] | None, default: float) -> list[float]:
        if x is None:
            return [default]
        return x if isinstance(x, list) else [x]

    return [
        LanguageModel(args.lm, words, weight, score)
        for weight in values(args.lm_weight, 1.0)
        for score in values(args.word_score, 0.0)
    ]


def utterances_of(sources: Sequence[str], skips: Skips) -> list[Utterance]:
    """The utterances that manifests (.jsonl), folders and audio files stand for.

    The id of a file that no list names is its path; ids of two lists may collide. Audio files that
    cannot be used are counted in `skips`. Raises DataError when nothing is left.
    """
    found: list[Utterance] = []
    for source in sources:
        path = Path(source)
        if path.suffix == ".jsonl":
            from speechssl.data.manifest import read_manifest

            found += read_manifest(path)
        elif path.is_dir():
            from speechssl.data.readers import gather

            inside, left_out = gather(path, "auto")
            if not any((path / name).exists() for name in ("wav.scp", "manifest.jsonl")):
                # Of plain files the path is the name, as given: two folders may hold the same ones.
                names = (os.path.relpath(u.audio, path.absolute()) for u in inside)
                inside = [replace(u, id=str(path / n)) for u, n in zip(inside, names, strict=True)]
            found += inside
            skips.extend(left_out)
        else:
            try:
                found.append(utterance_of(source))
            except AudioError as error:
                skips.add(error.kind, source, str(error))
    if not found:
        raise DataError("nothing to work on: " + ("; ".join(skips.lines()) or "no audio given"))
    return found


def utterance_of(path: str) -> Utterance:
    """A whole audio file as an utterance with the path as its id. Raises AudioError."""
    from speechssl.audio.io import probe

    info = probe(path)
    return Utterance(id=path, audio=path, num_samples=info.num_samples, rate_hz=info.rate_hz)


def pick_device(asked: str) -> str:
    """`auto` means a GPU where there is one, another one for each process that a launcher started.

    Raises ConfigError for a GPU that is not there.
    """
    import torch

    if asked == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
        return f"cuda:{local % torch.cuda.device_count()}"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {asked}: no GPU that torch can use here; try --device cpu")
    try:
        torch.device(asked)
    except RuntimeError as error:
        raise ConfigError(f"--device: got '{asked}', expected auto, cpu, cuda or cuda:N") from error
    return asked


def bar(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a progress bar on stderr, or a line of it now and then for a log file."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, unit="utt", file=sys.stderr)
        return
    begun = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told > PLAIN_EVERY_SEC and done < total:
            told = now
            left = timedelta(seconds=round((now - begun) / done * (total - done)))
            print(f"{what} {done}/{total}  ETA {left}", file=sys.stderr, flush=True)


def tell_skipped(skips: Skips) -> None:
    """The report of what was left out, on stderr."""
    if skips.total:
        print(f"left out {skips.total}:", file=sys.stderr)
        for line in skips.lines():
            print(f"  {line}", file=sys.stderr)
