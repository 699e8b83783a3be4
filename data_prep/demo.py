"""A demo corpus from nothing but pip: synthetic speakers saying sentences of a small vocabulary.

Every speaker is one eSpeak NG voice with an accent, pitch and rate of its own. Word and phone
times come with it (`words`, `phones` in the manifest: [what, start, end] in seconds). Clean formant
speech is much easier than real speech: scores on it say that the machinery works, nothing more.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.lists import (
    finished,
    print_lists,
    split_clips,
    unlabelled,
    write_lists,
)
from speechssl.data.manifest import read_manifest, write_manifest
from speechssl.errors import DataError, SpeechSSLError
from speechssl.rng import generator
from speechssl.types import Utterance

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

RATE_HZ = 16_000
_NAMES = (
    "Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario "
    "Michael Mike Nguyen Reed RicishayMax Storm adam anika announcer antonio aunty belinda "
    "benjamin boris caleb david ed edward edward2 f1 f2 f3 f4 f5 grandma grandpa gustave ian "
    "iven john kaukovalta klatt klatt2 klatt3 klatt4 linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo "
    "max michel miguel mike2 norbert pablo paul pedro quincy rob robert sandro shelby "
    "steph travis victor zac"
)  # whispering, robot and near-duplicate voices left out
VOICES = tuple(_NAMES.split(" "))
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-029")
SLOTS = (  # a sentence takes one word of each slot, in this order; the first and last may be absent
    ("ANNA", "BOB", "CLARA", "DAVID", "EMMA", "FRANK", "GRACE", "HENRY"),
    ("SEES", "BUYS", "WANTS", "FINDS", "SELLS", "KEEPS", "LIKES", "GIVES"),
    ("TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"),
    ("RED", "GREEN", "BLUE", "WHITE", "BLACK", "SMALL", "OLD", "CHEAP"),
    ("BOOKS", "SHOES", "CARS", "CHAIRS", "SHIPS", "APPLES", "DESKS", "CLOCKS"),
)


def download(
    dest: str | Path,
    *,
    speakers: int = 24,
    utterances: int = 20,
    seed: int = 1,
    jobs: int = 2,
    said: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Synthesise the corpus below `dest`: 16 kHz FLAC files and `corpus.jsonl`; resumes.

    `said(done, total)` is called after every speaker. Raises DataError when `dest` holds a corpus
    made with other numbers, or when a voice fails.
    """
    dest = Path(dest)
    whole = dest / "corpus.jsonl"
    limit = len(VOICES) * len(ACCENTS)
    if not 3 <= speakers <= limit or utterances < 4:
        raise DataError(
            f"got {speakers} speakers with {utterances} utterances, expected 3 to {limit} speakers "
            "with at least 4"
        )
    if whole.exists():
        _check_same(whole, speakers, utterances, seed)
        return dest
    parts = [dest / "parts" / f"seed{seed}-{utterances}-{_name(k)}.jsonl" for k in range(speakers)]
    todo = [k for k, part in enumerate(parts) if not part.exists()]
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        runs = [pool.submit(_in_new_process, dest, parts[k], k, utterances, seed) for k in todo]
        try:
            for done, run in enumerate(as_completed(runs), speakers - len(todo) + 1):
                run.result()
                said(done, speakers)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    write_manifest(whole, [u for part in parts for u in read_manifest(part)])
    return dest


def prepare(corpus_dir: str | Path, out_dir: str | Path) -> dict[str, Path]:
    """Write pretrain, pretrain_valid, asr_{train,dev,test} and spk_{train,dev,test} manifests.

    ASR dev and test have speakers of their own (an eighth each); the spk lists divide the clips of
    every speaker 70/15/15, and pre-training hears none of their dev and test clips.
    Raises DataError when the corpus is not there or files are missing.
    """
    corpus, out = Path(corpus_dir), Path(out_dir)
    source = corpus / "corpus.jsonl"
    if (done := finished(out, "demo", source)) is not None:
        return done
    utterances = read_manifest(source)
    if missing := [u.audio for u in utterances if not Path(u.audio).is_file()]:
        raise DataError(
            f"{corpus}: {len(missing)} of {len(utterances)} files are missing, first {missing[0]}; "
            "make the corpus again in an empty folder"
        )
    names = sorted({u.speaker or "" for u in utterances})
    order = [str(name) for name in generator("demo", "speakers").permutation(names)]
    num_held = max(1, len(names) // 8)
    test, dev = set(order[:num_held]), set(order[num_held : 2 * num_held])
    asr = {"train": [], "dev": [], "test": []}
    for u in utterances:
        asr["test" if u.speaker in test else "dev" if u.speaker in dev else "train"].append(u)
    by_clip = split_clips(utterances, "demo")
    lists: dict[str, Sequence[Utterance]] = {
        "pretrain": unlabelled(asr["train"], by_clip),
        "pretrain_valid": unlabelled(asr["dev"], by_clip),
    }
    lists |= {f"asr_{split}": found for split, found in asr.items()}
    lists |= {f"spk_{split}": found for split, found in by_clip.items()}
    return write_lists(out, "demo", source, lists)


def _check_same(whole: Path, speakers: int, utterances: int, seed: int) -> None:
    found = read_manifest(whole)
    got = (len({u.speaker for u in found}), len(found), found[0].extra.get("seed"))
    if got != (speakers, speakers * utterances, seed):
        raise DataError(
            f"{whole}: holds {got[0]} speakers, {got[1]} utterances of seed {got[2]}, asked for "
            f"{speakers}, {speakers * utterances}, {seed}; remove it or choose another folder"
        )


def _in_new_process(dest: Path, part: Path, speaker: int, utterances: int, seed: int) -> None:
    """One speaker in a process of its own (see `espeak.py` for why)."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "data_prep.demo", str(dest), "--one-speaker", str(speaker)]
    command += ["--part", str(part), "--utterances", str(utterances), "--seed", str(seed)]
    run = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if run.returncode != 0:
        raise DataError(f"demo speaker {speaker} failed:\n{run.stderr.strip()[-2000:]}")


def _one_speaker(dest: Path, part: Path, speaker: int, num_utterances: int, seed: int) -> None:
    import numpy as np

    from data_prep.espeak import Voice
    from speechssl.audio.io import resample, write

    name = _name(speaker)
    order = generator("demo", seed, "voices").permutation(len(VOICES))
    rng = generator("demo", seed, "speaker", speaker)
    # A second round through the voices takes another accent, so that no pair comes twice.
    first = int(generator("demo", seed, "accent", int(order[speaker % len(VOICES)])).integers(6))
    accent = ACCENTS[(first + speaker // len(VOICES)) % len(ACCENTS)]
    voice = Voice(
        f"{accent}+{VOICES[order[speaker % len(VOICES)]]}",
        seed=speaker + 1,
        rate=int(rng.integers(140, 190)),
        pitch=int(rng.integers(30, 71)),
        pitch_range=int(rng.integers(30, 71)),
    )
    level = 10 ** (rng.uniform(-30, -20) / 20)  # root mean square
    noise = level * 10 ** (-rng.uniform(25, 40) / 20)
    made: list[Utterance] = []
    for number in range(num_utterances):
        draw = generator("demo", seed, "utterance", speaker, number)
        words = _sentence(draw)
        # Full stop: the falling contour of a statement. Lower case, or letters get spelled out.
        spoken = voice.say(" ".join(words).lower() + ".")
        wave = resample(spoken.wave, voice.rate_hz, RATE_HZ)
        loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
        end = min(len(wave), int(loud[-1]) + RATE_HZ // 50)
        lead, tail = (int(n) for n in draw.integers(RATE_HZ // 20, RATE_HZ // 5, 2))
        wave = np.pad(wave[:end], (lead, tail))
        wave *= level / np.sqrt(np.mean(np.square(wave[lead : lead + end])))
        wave = wave + noise * draw.standard_normal(len(wave))
        id_ = f"demo-{name}-{number:03d}"
        path = dest / "audio" / name / f"{id_}.flac"
        write(path, np.clip(wave, -1, 1), RATE_HZ)
        shift, last = lead / RATE_HZ, (lead + end) / RATE_HZ
        starts = [start for _, start in spoken.words]
        made.append(
            Utterance(
                id=id_,
                audio=str(path),
                num_samples=len(wave),
                rate_hz=RATE_HZ,
                text=" ".join(words),
                speaker=f"demo-{name}",
                extra={
                    "words": _spans(words, starts, shift, last)
                    if len(starts) == len(words)
                    else [],
                    "phones": _spans(*_unzip(spoken.phones), shift, last),
                    "accent": accent,
                    "seed": seed,
                },
            )
        )
    write_manifest(part, made)


def _sentence(draw: np.random.Generator) -> list[str]:
    words = [str(draw.choice(slot)) for slot in SLOTS]
    first, last = (int(n) for n in draw.integers(0, 4, 2))  # a quarter of them lack one end
    return words[1 if first == 0 else 0 : -1 if last == 0 else None]


def _spans(
    names: Sequence[str], starts: Sequence[float], shift: float, last: float
) -> list[list[str | float]]:
    """[name, start, end] in seconds: each lasts to the start of the next one."""
    begin = [round(start + shift, 3) for start in starts]
    end = [*begin[1:], round(last, 3)]
    return [
        [name, b, e] for name, b, e in zip(names, begin, end, strict=True) if name.strip() and b < e
    ]


def _unzip(phones: Sequence[tuple[str, float]]) -> tuple[list[str], list[float]]:
    return [phone for phone, _ in phones], [start for _, start in phones]


def _name(speaker: int) -> str:
    return f"s{speaker:03d}"


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m data_prep.demo OUT_DIR`: audio and manifests in one folder."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.demo", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for audio and manifests")
    parser.add_argument("--speakers", type=int, default=24, help="%(default)s")
    parser.add_argument("--utterances", type=int, default=20, help="per speaker, %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="%(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, %(default)s")
    parser.add_argument("--one-speaker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    try:
        if args.one_speaker is not None:
            _one_speaker(args.out, args.part, args.one_speaker, args.utterances, args.seed)
            return 0
        began = time.monotonic()

        def said(done: int, total: int) -> None:
            left = (time.monotonic() - began) / done * (total - done)
            end = "\r" if sys.stderr.isatty() and done < total else "\n"
            if end == "\r" or done % 8 == 0 or done == total:
                print(f"demo speaker {done}/{total}, {left:.0f} s left ", end=end, file=sys.stderr)

        numbers = {"speakers": args.speakers, "utterances": args.utterances, "seed": args.seed}
        download(args.out, **numbers, jobs=args.jobs, said=said)
        print_lists(prepare(args.out, args.out))
    except SpeechSSLError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
