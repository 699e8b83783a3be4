"""`speechssl predict`: what is said in audio files, or who says it; the model's head decides."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from speechssl.cli.inputs import add_model_options, add_search_options
from speechssl.errors import ConfigError

if TYPE_CHECKING:
    from speechssl.data.skips import Skips
    from speechssl.models.bundle import Bundle
    from speechssl.types import Utterance


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl predict",
        description="Transcripts or speakers of audio, on stdout: `text` is one line per file "
        "(its path, or the id that a list gives it; tab; answer), `json` one object per line, "
        "`ctm` one word per line with times.",
    )
    p.add_argument("model", help="model folder or hub id")
    p.add_argument("audio", nargs="+", help="audio files, folders or manifests (.jsonl)")
    p.add_argument("--format", choices=("text", "json", "ctm"), default="text")
    add_search_options(p, several=False)
    add_model_options(p)
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb; exit code 3 when some of the audio could not be used."""
    args = parser().parse_args(argv)
    from speechssl.cli.inputs import pick_device, tell_skipped, utterances_of
    from speechssl.data.skips import Skips
    from speechssl.downstream.ctc import CTC
    from speechssl.downstream.speaker import Speaker
    from speechssl.models.bundle import load

    bundle = load(args.model, pick_device(args.device), plugins=args.plugins)
    if not isinstance(bundle.objective, CTC | Speaker):
        raise ConfigError(
            f"model {args.model} has no head that predicts; fine-tune it: "
            f"speechssl train --init.from {args.model} --objective.name ctc (or speaker) ..."
        )
    if args.format == "ctm" and not isinstance(bundle.objective, CTC):
        raise ConfigError("--format ctm needs words, but this model names speakers; use json")
    skips = Skips()
    utterances = utterances_of(args.audio, skips)
    answers = transcripts if isinstance(bundle.objective, CTC) else speakers
    for answer in answers(bundle, utterances, args, skips):
        for line in formatted(answer, args.format):
            print(line)
    tell_skipped(skips)
    sys.stdout.flush()
    return 3 if skips.total else 0


def transcripts(
    bundle: Bundle, utterances: Sequence[Utterance], args: argparse.Namespace, skips: Skips
) -> Iterator[dict[str, Any]]:
    """One answer an utterance, in their order: text and words with times."""
    from dataclasses import asdict

    from speechssl.cli.inputs import beam_of, language_models
    from speechssl.cli.scoring import transcribe_all

    lms = language_models(args)
    found, _ = transcribe_all(bundle, utterances, beam_of(args), lms, args.batch_sec, skips)
    for place, utterance in enumerate(utterances):
        if place in found:
            words = [asdict(word) for word in found[place].words]
            yield _named(utterance) | {"text": found[place].text, "words": words}


def speakers(
    bundle: Bundle, utterances: Sequence[Utterance], args: argparse.Namespace, skips: Skips
) -> Iterator[dict[str, Any]]:
    """One answer an utterance, in their order: the likeliest speaker and its probability."""
    from speechssl.cli.scoring import speaker_answers

    found = speaker_answers(bundle, utterances, args.batch_sec, skips)
    for place, utterance in enumerate(utterances):
        if place in found:
            best = found[place]
            yield _named(utterance) | {"speaker": best.name, "probability": best.probability}


def _named(utterance: Utterance) -> dict[str, Any]:
    return {"id": utterance.id, "audio": utterance.audio}


def formatted(answer: dict[str, Any], form: str) -> list[str]:
    """The lines of one answer."""
    if form == "json":
        return [json.dumps(answer, ensure_ascii=False)]
    if form == "text":
        return [f"{answer['id']}\t{answer.get('text', answer.get('speaker'))}"]
    name = "_".join(answer["id"].split())
    return [
        f"{name} 1 {w['start_sec']:.3f} {w['end_sec'] - w['start_sec']:.3f} {w['text']} "
        f"{w['confidence']:.3f}"
        for w in answer["words"]
    ]
