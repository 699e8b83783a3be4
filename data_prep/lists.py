"""What the corpus scripts share: finished marks, lists written together, one command line."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from speechssl.atomic import write_text
from speechssl.data.manifest import describe, read_manifest, write_manifest
from speechssl.data.readers import gather
from speechssl.errors import DataError, SpeechSSLError
from speechssl.rng import generator
from speechssl.types import Utterance

log = logging.getLogger(__name__)
MARK = ".completed"
VERSION = 2  # of how lists are drawn: raise it, and everything is prepared again


def finished(out_dir: Path, name: str, source: Path) -> dict[str, Path] | None:
    """The manifests of an earlier `prepare` of the same source, or None when there is work to do.

    A `source` that is a file also counts as changed when it is newer than the mark.
    """
    mark = _read_mark(out_dir).get(name)
    if not mark or (mark["source"], mark.get("version")) != (str(source.absolute()), VERSION):
        return None
    if source.is_file() and source.stat().st_mtime > (out_dir / MARK).stat().st_mtime:
        return None
    paths = {split: out_dir / f"{split}.jsonl" for split in mark["utterances"]}
    if not all(path.is_file() for path in paths.values()):
        return None
    log.info("%s: %s is already prepared", out_dir, name)
    return paths


def write_lists(
    out_dir: Path,
    name: str,
    source: Path,
    lists: Mapping[str, Sequence[Utterance]],
    *,
    complete: bool = True,
) -> dict[str, Path]:
    """Write `SPLIT.jsonl` for every list, then the mark, unless more is expected to come.

    Raises DataError for an empty list.
    """
    for split, utterances in lists.items():
        if not utterances:
            raise DataError(f"{name}: no utterances for '{split}' in {source}; is it all there?")
    marks = _read_mark(out_dir)
    if marks.pop(name, None):
        write_text(out_dir / MARK, json.dumps(marks, indent=1) + "\n")
    paths = {}
    for split, utterances in lists.items():
        paths[split] = out_dir / f"{split}.jsonl"
        write_manifest(paths[split], utterances)
    if complete:
        counts = {split: len(utterances) for split, utterances in lists.items()}
        marks[name] = {"version": VERSION, "source": str(source.absolute()), "utterances": counts}
        write_text(out_dir / MARK, json.dumps(marks, indent=1) + "\n")
    return paths


def all_of(source: Path) -> list[Utterance]:
    """Every utterance of a corpus in any known form. Raises DataError when one cannot be used."""
    utterances, skips = gather(source, jobs=2)
    skips.check(len(utterances) + skips.total, max_fraction=0.0)
    return utterances


def tell_hours(name: str, utterances: Sequence[Utterance]) -> None:
    """Log what one source gives."""
    hours = sum(u.seconds for u in utterances) / 3600
    log.info("pre-training: %d clips, %.2f h from %s", len(utterances), hours, name)


def split_clips(utterances: Sequence[Utterance], *key: str) -> dict[str, list[Utterance]]:
    """Divide the clips of every speaker 70/15/15 into train, dev, test: closed-set identification.

    Drawn by a generator keyed with `key` and the speaker, at least 2, 1 and 1 clips; speakers with
    fewer than 4 clips, and clips without speaker, are left out. The order of the list is kept.
    Nothing may pre-train on the dev and test clips: see `unlabelled`.
    """
    clips: dict[str, list[str]] = {}
    for u in utterances:
        if u.speaker is not None:
            clips.setdefault(u.speaker, []).append(u.id)
    part: dict[str, str] = {}
    for speaker, ids in sorted(clips.items()):
        if len(ids) < 4:
            log.warning("speaker %s: %d clips, expected at least 4; left out", speaker, len(ids))
            continue
        held = max(1, round(0.15 * len(ids)))
        drawn = generator(*key, "clips", speaker).permutation(sorted(ids))
        for rank, id_ in enumerate(drawn):
            part[str(id_)] = "test" if rank < held else "dev" if rank < 2 * held else "train"
    return {
        split: [u for u in utterances if part.get(u.id) == split]
        for split in ("train", "dev", "test")
    }


def unlabelled(
    utterances: Sequence[Utterance], held: Mapping[str, Sequence[Utterance]]
) -> list[Utterance]:
    """`utterances` as pre-training may hear them: no text, and no dev or test clip of `held`."""
    kept_back = {u.id for split in ("dev", "test") for u in held[split]}
    return [replace(u, text=None) for u in utterances if u.id not in kept_back]


def print_lists(paths: Mapping[str, Path]) -> None:
    """One line a manifest: utterances, speakers, minutes."""
    for split, path in paths.items():
        facts = describe(read_manifest(path))
        print(
            f"{split:24s} {facts['utterances']:6d} utterances {facts['speakers']:5d} speakers "
            f"{60 * facts['hours']:8.1f} min  {path}"
        )


def command(
    script: str,
    about: str,
    download: Callable[[Path], Path],
    prepare: Callable[[Path, Path], dict[str, Path]],
    argv: Sequence[str] | None = None,
) -> int:
    """Command line of a corpus script: `download DEST` and `prepare CORPUS OUT`. Returns 0 or 3."""
    parser = argparse.ArgumentParser(prog=f"python -m data_prep.{script}", description=about)
    verbs = parser.add_subparsers(dest="verb", required=True)
    get = verbs.add_parser("download", help="fetch and unpack below DEST; resumes")
    get.add_argument("dest", type=Path)
    make = verbs.add_parser("prepare", help="write manifests of CORPUS into OUT")
    make.add_argument("corpus", type=Path)
    make.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.verb == "download":
            print(download(args.dest))
        else:
            print_lists(prepare(args.corpus, args.out))
    except SpeechSSLError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _read_mark(out_dir: Path) -> dict:
    try:
        return json.loads((out_dir / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
