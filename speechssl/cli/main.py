"""The `speechssl` command: finds the verb, runs it, turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from speechssl import __version__
from speechssl.errors import ConfigError, SpeechSSLError

#: Verb -> one line of help. Each verb is the module of that name beside this file.
VERBS = {
    "manifest": "scan a folder or corpus into a manifest, or check and describe a manifest",
    "train": "pre-train or fine-tune; the objective decides",
    "extract": "write the features of audio files",
    "cluster": "k-means over frames, and labels for every frame: the targets of objective hubert",
    "evaluate": "WER, speaker accuracy and EER, or validation loss of a model",
    "lm": "an n-gram language model of transcripts, for --lm of evaluate and predict",
    "probe": "what frozen features know: linear probes beside log-mel and random weights",
    "predict": "transcripts or speakers of audio files",
    "convert": "models from and to Hugging Face, fairseq and torchaudio, with a numeric check",
    "export": "a model as an ONNX graph, checked against PyTorch, int8 by choice",
    "push": "a model folder onto the Hugging Face hub",
    "show": "a configuration, model, run, checkpoint or manifest in words",
    "report": "learning curves of runs as a picture",
}

INTERRUPTED_AND_SAVED = 75  # EX_TEMPFAIL: the same command goes on


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code (0 ok, 1 failure, 2 usage or config, 3 data)."""
    words = without_local_rank(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"speechssl {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"verbs: {', '.join(VERBS)}"
        complain("speechssl", f"unknown verb '{verb}'; {hint}")
        return 2
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    logging.getLogger("speechssl").setLevel(logging.WARNING if rank else logging.INFO)
    logging.basicConfig(
        format=f"rank {rank}: %(message)s" if rank else "%(message)s",
        stream=sys.stderr,
    )
    try:
        return int(importlib.import_module(f"speechssl.cli.{verb}").main(rest))
    except (SpeechSSLError, OSError) as error:
        if os.environ.get("SPEECHSSL_DEBUG", "") not in ("", "0"):
            raise
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        # Every rank reads the same configuration, so one complaint about it is enough.
        code = error.exit_code if isinstance(error, SpeechSSLError) else 1
        if code == INTERRUPTED_AND_SAVED:
            if rank == 0:
                print(f"speechssl {verb}: {error}", file=sys.stderr)
        elif rank == 0 or not isinstance(error, ConfigError):
            told = " ".join([str(error), *getattr(error, "__notes__", ())])
            complain(f"speechssl {verb}", f"rank {rank}: {told}" if rank else told)
        return code
    except KeyboardInterrupt:
        complain(f"speechssl {verb}", "interrupted")
        return 130


def entry() -> NoReturn:
    """`speechssl` and `python -m speechssl`: run the command line and end the process."""
    code = main()
    if dist := sys.modules.get("speechssl.engine.dist"):  # imported by training alone
        dist.end_process(code)
    sys.exit(code)


def complain(who: str, message: str) -> None:
    """One line on stderr, in the form of argparse."""
    print(f"{who}: error: {' '.join(message.split())}", file=sys.stderr)


def without_local_rank(words: Sequence[str]) -> list[str]:
    """The words less `--local_rank N`, which DeepSpeed's launcher adds beside LOCAL_RANK."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name in ("--local_rank", "--local-rank"):
            if not equals:
                next(rest, None)
            continue
        kept.append(word)
    return kept


def help_text() -> str:
    """What `speechssl --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {line}" for verb, line in VERBS.items())
    return (
        "usage: speechssl VERB [--config FILE ...] [--section.key VALUE ...]\n\n"
        "Self-supervised speech: from raw audio to models, features, words and speakers.\n\n"
        f"verbs:\n{verbs}\n\n"
        "`speechssl VERB --help` tells more. Several devices: `torchrun --nproc_per_node N -m\n"
        "speechssl train ...` or `deepspeed --num_gpus N --module speechssl train ...`.\n"
        "Exit codes: 0 ok, 1 failure, 2 usage or configuration, 3 data, 75 interrupted and saved."
    )
