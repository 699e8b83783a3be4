"""`speechssl lm`: an n-gram language model of transcripts, for decoding with `--lm`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl lm",
        description="Estimate a word n-gram model (modified Kneser-Ney) and write it as an ARPA "
        "file, which `evaluate` and `predict` take as --lm.",
    )
    p.add_argument("text", nargs="+", help="manifests (.jsonl), or text with a sentence a line")
    p.add_argument("--out", required=True, help="ARPA file to write")
    p.add_argument("--order", type=int, default=3, help="longest n-gram in words (%(default)s)")
    p.add_argument(
        "--heldout",
        nargs="+",
        default=[],
        help="texts to tell the perplexity of, never learnt from",
    )
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    args = parser().parse_args(argv)
    from speechssl.downstream.ngram import estimate

    learnt = [sentence for path in args.text for sentence in sentences(path)]
    model = estimate(learnt, args.order)
    model.write(args.out)
    print(
        f"{args.out}: {args.order}-gram, {len(model.words)} words, {len(model.log_probs)} n-grams "
        f"from {len(learnt)} sentences"
    )
    for path in args.heldout:
        perplexity, unknown = model.perplexity(sentences(path))
        print(f"{path}: perplexity {perplexity:.1f}, unknown words {unknown:.1%}")
    print(f"next: speechssl evaluate MODEL MANIFEST --lm {args.out}")
    return 0


def sentences(path: str) -> list[str]:
    """The transcripts of a manifest, or the lines of a text file, without empty ones.

    Raises DataError when there is none.
    """
    from speechssl.errors import DataError

    if Path(path).suffix == ".jsonl":
        from speechssl.data.manifest import read_manifest

        texts = [u.text or "" for u in read_manifest(path)]
    else:
        try:
            texts = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"text {path}: {error}") from error
    if not (found := [text for text in texts if text.strip()]):
        raise DataError(f"{path}: no text in it; expected transcripts or a sentence a line")
    return found
