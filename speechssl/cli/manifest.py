"""`speechssl manifest`: scan a corpus into a manifest, or check and describe one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.errors import ConfigError

if TYPE_CHECKING:
    from speechssl.data.skips import Skips
    from speechssl.types import Utterance

KINDS = ("auto", "folder", "kaldi", "fairseq", "nemo", "jsonl")


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl manifest",
        description="Scan a folder, a Kaldi directory, a fairseq tsv or a NeMo jsonl into a JSONL "
        "manifest. With only a .jsonl: check every line of it and describe it; with --full-check "
        "also decode what it names.",
    )
    p.add_argument("source", help="folder or file to read")
    p.add_argument("out", nargs="?", help="manifest to write (.jsonl)")
    p.add_argument("--kind", choices=KINDS, default="auto", help="what SOURCE is (%(default)s)")
    p.add_argument("--full-check", action="store_true", help="decode every file to its end")
    p.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="threads that open files (%(default)s)"
    )
    p.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        metavar="F",
        help="give up when more than this share of the utterances cannot be used (%(default)s)",
    )
    p.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    args = parser().parse_args(argv)
    if args.out is None:
        if Path(args.source).suffix != ".jsonl":
            raise ConfigError(
                f"no OUT given, and {args.source} is no .jsonl manifest to check; "
                f"write: speechssl manifest {args.source} OUT.jsonl"
            )
        return check(args)
    return scan(args)


def check(args: argparse.Namespace) -> int:
    """Read a manifest, every line, decode its audio if asked to, and say what is in it."""
    from speechssl.data.manifest import describe, read_manifest

    for name in ("kind",) if args.full_check else ("kind", "jobs", "max_bad_fraction"):
        if getattr(args, name) != parser().get_default(name):
            raise ConfigError(
                f"--{name.replace('_', '-')} has no meaning for checking a manifest; leave it out, "
                f"or write a new one: speechssl manifest {args.source} OUT.jsonl"
            )
    if args.full_check:
        args.kind = "jsonl"
        utterances, skips = gathered(args)
        facts = describe(utterances) | {"skipped": skips.total}
    else:
        facts = describe(read_manifest(args.source))
    print_facts(args.source, facts, as_json=args.json)
    return 0


def gathered(args: argparse.Namespace) -> tuple[list[Utterance], Skips]:
    """What can be used and what cannot; too much of the latter is an error, a little is told."""
    from speechssl.data.readers import gather

    utterances, skips = gather(
        args.source,
        args.kind,
        full_check=args.full_check,
        jobs=args.jobs,
        progress=sys.stderr.isatty(),
    )
    for line in skips.lines():
        print(line, file=sys.stderr)
    skips.check(len(utterances) + skips.total, args.max_bad_fraction, None)
    return utterances, skips


def scan(args: argparse.Namespace) -> int:
    """Gather utterances, report what was skipped, and write the manifest."""
    from speechssl.data.manifest import describe, write_manifest

    utterances, skips = gathered(args)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(out, utterances)
    facts = describe(utterances) | {"skipped": skips.total}
    if skips.total:
        report = out.with_suffix(".skipped.json")
        skips.write_json(report)
        facts["skipped_list"] = str(report)
    print_facts(str(out), facts, as_json=args.json)
    return 0


def print_facts(title: str, facts: dict[str, Any], *, as_json: bool) -> None:
    """A heading and one aligned line a fact, or one JSON object."""
    if as_json:
        print(json.dumps({"path": title} | facts, ensure_ascii=False))
        return
    print(title)
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        shown = f"{value:.2f}" if isinstance(value, float) else value
        print(f"  {key.replace('_', ' '):<{width}}  {shown}")
