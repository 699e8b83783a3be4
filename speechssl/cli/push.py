"""`speechssl push`: a model folder onto the Hugging Face hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl push",
        description="Upload a model folder to the Hugging Face hub, where `speechssl.load` and "
        "transformers find it by its name. Log in first: hf auth login, or set HF_TOKEN.",
    )
    p.add_argument("folder", help="model folder")
    p.add_argument("repo", help="organisation/name")
    p.add_argument("--private", action="store_true", help="where it is made: for you alone")
    p.add_argument("--revision", help="branch to write to (default: main)")
    p.add_argument("--message", default="Upload model", help="of the commit (%(default)s)")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    args = parser().parse_args(argv)
    from speechssl.interop.hub import push_to_hub

    address = push_to_hub(
        args.folder,
        args.repo,
        private=args.private,
        revision=args.revision,
        message=args.message,
    )
    print(f"{args.folder} -> {address}")
    print(f"next: speechssl.load('{args.repo}')")
    return 0
