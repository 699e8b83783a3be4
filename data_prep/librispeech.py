"""LibriSpeech (OpenSLR 12, CC BY 4.0) and the fine-tuning sets of libri-light, as manifests.

Layout: `LibriSpeech/SUBSET/SPEAKER/CHAPTER/{SPEAKER-CHAPTER-NNNN.flac, SPEAKER-CHAPTER.trans.txt}`
and `librispeech_finetuning/{1h/0..5,9h}/{clean,other}/SPEAKER/CHAPTER/...`.
Sources: Panayotov et al. 2015 (hours of its table 1), Kahn et al. 2019 (arXiv 1912.07875).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.archive import fetch, unpack
from data_prep.lists import finished, write_lists
from speechssl.audio.io import probe
from speechssl.errors import DataError, SpeechSSLError
from speechssl.types import Utterance

log = logging.getLogger(__name__)

_OPENSLR = "https://www.openslr.org/resources/12"
_LIBRILIGHT = "https://dl.fbaipublicfiles.com/librilight/data/librispeech_finetuning.tgz"
FINETUNING = "librispeech_finetuning"

#: Subset -> utterances and hours as published.
PUBLISHED = {
    "train-clean-100": (28539, 100.6),
    "train-clean-360": (104014, 363.6),
    "train-other-500": (148688, 496.7),
    "dev-clean": (2703, 5.4),
    "dev-other": (2864, 5.3),
    "test-clean": (2620, 5.4),
    "test-other": (2939, 5.1),
}
#: Fine-tuning set -> its folders below `librispeech_finetuning`, and hours.
#: Six sets of 10 minutes are published; the first is the customary one.
FINETUNING_SETS = {
    "finetune-10min": (("1h/0",), 1 / 6),
    "finetune-1h": (tuple(f"1h/{i}" for i in range(6)), 1.0),
    "finetune-10h": ((*(f"1h/{i}" for i in range(6)), "9h"), 10.0),
}
_JOBS = 4  # threads that open files
_TOLERANCE = 0.06  # the paper rounds; its hours of the `other` sets are off by up to 5 %
_SHA256 = {
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    FINETUNING: "5d1efdc777b548194d7e09ba89126e2188026df9fd57aa57eb14408d2b2342af",
}


def download(dest: str | Path, subsets: Sequence[str] = (*PUBLISHED, FINETUNING)) -> Path:
    """Fetch and unpack `subsets` (960 h by default: 60 GB) below `dest`; resumable, checksummed.

    Raises DataError for an unknown subset, a failed download or a wrong checksum.
    """
    dest = Path(dest)
    for subset in subsets:
        if subset not in _SHA256:
            raise DataError(f"unknown subset '{subset}', expected one of {', '.join(_SHA256)}")
    for subset in subsets:
        url = _LIBRILIGHT if subset == FINETUNING else f"{_OPENSLR}/{subset}.tar.gz"
        if not (dest / f"{Path(url).name}.completed").exists():
            unpack(fetch(url, dest / Path(url).name, _SHA256[subset]), dest)
    return dest


def prepare(corpus_dir: str | Path, out_dir: str | Path) -> dict[str, Path]:
    """Write one manifest for each subset and fine-tuning set found below `corpus_dir`.

    Transcript lines without audio are counted and left out. A complete subset is read once, one
    that is not complete again at every call. Returns split -> manifest.
    Raises DataError when nothing is found, when audio has no transcript, when no audio of a subset
    is there, or when a subset is complete but its hours differ from the published ones.
    """
    corpus, out = Path(corpus_dir), Path(out_dir)
    root = corpus / "LibriSpeech" if (corpus / "LibriSpeech").is_dir() else corpus
    written: dict[str, Path] = {}
    for subset, (num_utterances, hours) in PUBLISHED.items():
        if (root / subset).is_dir():
            written |= _prepare(out, subset, root / subset, [root / subset], hours, num_utterances)
    extra = next((d / FINETUNING for d in (corpus, root) if (d / FINETUNING).is_dir()), None)
    for name, (folders, hours) in FINETUNING_SETS.items() if extra else ():
        parts = [extra / folder for folder in folders if extra]
        if missing := [str(part) for part in parts if not part.is_dir()]:
            log.warning("%s: left out, no folder %s", name, ", ".join(missing))
            continue
        written |= _prepare(out, name, parts[0], parts, hours)
    if not written:
        raise DataError(
            f"{corpus}: none of {', '.join(PUBLISHED)}, {FINETUNING} is here; "
            "expected LibriSpeech/SUBSET/SPEAKER/CHAPTER/*.flac; fetch it with "
            "'python -m data_prep.librispeech download DEST'"
        )
    return written


def _prepare(
    out: Path,
    split: str,
    source: Path,
    folders: Sequence[Path],
    hours: float,
    published_utterances: int = 0,
) -> dict[str, Path]:
    """One manifest of the chapters below `folders`, unless it was finished before."""
    if (done := finished(out, split, source)) is not None:
        return done
    utterances = [u for folder in folders for u in _read(split, folder)]
    complete = _is_complete(split, utterances, hours, published_utterances)
    return write_lists(out, split, source, {split: utterances}, complete=complete)


def _read(split: str, folder: Path) -> list[Utterance]:
    """Utterances of all chapters below `folder`, in the order of their ids' paths."""
    found: list[tuple[Path, str]] = []
    absent: list[Path] = []
    for transcripts in sorted(folder.rglob("*.trans.txt")):
        chapter = transcripts.parent
        texts = dict(_lines(transcripts))
        there = {file.stem for file in chapter.glob("*.flac")}
        for stray in sorted(there - texts.keys()):
            raise DataError(f"{chapter / stray}.flac: no transcript in {transcripts.name}")
        for name, text in texts.items():
            file = chapter / f"{name}.flac"
            if name in there:
                found.append((file, text))
            else:
                absent.append(file)
    if absent:
        message = f"{split}: {len(absent)} transcripts have no audio, the first is {absent[0]}"
        if not found:
            raise DataError(f"{message}; expected audio beside them: unpack the archive again")
        log.warning("%s; left out", message)
    with ThreadPoolExecutor(_JOBS) as pool:  # headers of a hundred thousand files
        headers = pool.map(probe, (file for file, _ in found))
        return [
            Utterance(
                id=file.stem,
                audio=str(file.resolve()),
                num_samples=info.num_samples,
                rate_hz=info.rate_hz,
                text=text,
                speaker=file.stem.partition("-")[0],
            )
            for (file, text), info in zip(found, headers, strict=True)
        ]


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, text = line.strip().partition(" ")
        if not name:
            continue
        if not text:
            raise DataError(f"{file}:{number}: got {line!r}, expected 'ID TRANSCRIPT'")
        yield name, text


def _is_complete(
    split: str, utterances: Sequence[Utterance], hours: float, published_utterances: int
) -> bool:
    got = sum(u.seconds for u in utterances) / 3600
    wrong = abs(got - hours) > _TOLERANCE * hours
    if wrong and len(utterances) == published_utterances:
        raise DataError(
            f"{split}: {len(utterances)} utterances have {got:.2f} h, published are {hours:g} h; "
            "audio files are damaged: unpack the archive again"
        )
    if wrong:
        log.warning(
            "%s is not complete: %d utterances, %.2f h of %g h", split, len(utterances), got, hours
        )
    return not wrong and len(utterances) == (published_utterances or len(utterances))


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m data_prep.librispeech {download DEST [SUBSET...], prepare CORPUS OUT}`."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.librispeech", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    get = verbs.add_parser("download", help="fetch and unpack below DEST")
    get.add_argument("dest")
    get.add_argument("subsets", nargs="*", metavar="SUBSET", help=", ".join(_SHA256))
    make = verbs.add_parser("prepare", help="write manifests of CORPUS into OUT")
    make.add_argument("corpus")
    make.add_argument("out")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.verb == "download":
            download(args.dest, args.subsets or (*PUBLISHED, FINETUNING))
        else:
            for split, path in prepare(args.corpus, args.out).items():
                log.info("%s: %s", split, path)
    except SpeechSSLError as error:
        log.error("error: %s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
