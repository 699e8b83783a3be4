"""Checkpoints that are either complete or not there.

`ckpt/step_00000100/` is written under a temporary name by all ranks, listed with sizes and SHA-256
in MANIFEST.json, flushed to disk, renamed, and only then named by `latest`. Loading believes the
manifest, not `latest`. All ranks must see the same file system.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from speechssl.atomic import replacing
from speechssl.engine import dist
from speechssl.engine.provenance import versions
from speechssl.errors import CheckpointError
from speechssl.types import Progress
from speechssl.unpickle import safe_load

log = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"
FORMAT = 1
_TEMPORARY = ".tmp-"
_MUST_AGREE = ("backbone", "objective", "optim")  # sections that make it another experiment
_INPUTS = "inputs."  # hashes of what it starts from and learns from; see `config.input_hashes`


def load_part(path: Path | str, allowed: tuple[type, ...] = ()) -> Any:
    """One file of a checkpoint. Raises CheckpointError as `safe_load`."""
    return safe_load(path, "delete that checkpoint folder to go on from an earlier one", allowed)


@dataclass(frozen=True)
class Saved:
    """What the manifest of a checkpoint says about the run."""

    progress: Progress
    window: dict[str, Any]  # metric sums since the last log line
    validation_due: bool = False  # the validation of this step was cut short


class CheckpointStore:
    """The checkpoints of one run. Methods are called by all ranks together."""

    def __init__(
        self, root: Path, keep: int, engine: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        self.root, self.keep = root, keep
        self.engine = dict(engine)
        self.config: dict[str, Any] = json.loads(json.dumps(config, default=str))
        if dist.is_main():
            root.mkdir(parents=True, exist_ok=True)
            for left_over in root.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(left_over)
        dist.barrier()

    # Saving.

    def save(self, saved: Saved, write: Callable[[Path], None]) -> Path:
        """Commit a checkpoint; `write` puts this rank's files into the folder it is given.

        Raises CheckpointError on all ranks when any of them fails; older checkpoints are untouched.
        """
        name = f"step_{saved.progress.step:08d}"
        folder, final = self.root / f"{_TEMPORARY}{name}", self.root / name
        self._together("prepare", lambda: self._prepare(folder), folder)
        self._together("write", lambda: write(folder), folder)
        files = self._together("check", lambda: _digest(folder), folder)
        manifest = {
            "format": FORMAT,
            "progress": asdict(saved.progress),
            "window": saved.window,
            "validation_due": saved.validation_due,
            "world_size": dist.world(),
            "engine": self.engine,
            "config": self.config,
            "versions": versions(),
            "files": {key: value for part in dist.gather(files) for key, value in part.items()},
        }

        def commit() -> None:
            if dist.is_main():
                text = json.dumps(manifest | {"sha256": _seal(manifest)}, indent=1)
                (folder / MANIFEST).write_text(text, encoding="utf-8")
                _sync(folder / MANIFEST)
                _sync(folder)
                # One that load passed over as damaged, or whose validation was still due. Gone only
                # when its successor is there: it may be the last good one.
                before = self.root / f"{_TEMPORARY}{name}.before"
                if final.exists():
                    os.rename(final, before)
                os.rename(folder, final)
                _sync(self.root)
                shutil.rmtree(before, ignore_errors=True)
                with replacing(self.root / "latest") as latest:
                    latest.write_text(f"{name}\n", encoding="utf-8")
                    _sync(latest)
                _sync(self.root)
                self._rotate(saved.progress)

        self._together("commit", commit, folder)
        return final

    def _together(self, what: str, action: Callable[[], Any], folder: Path) -> Any:
        """Run on all ranks; if it fails on any, clean up and raise the same error on all."""
        result, problem = None, ""
        try:
            result = action()
        except Exception as error:  # whatever it is, the other ranks must hear of it
            problem = f"rank {dist.rank()}: {type(error).__name__}: {error}"
        problems = [p for p in dist.gather(problem) if p]
        if problems:
            if dist.is_main():
                shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(
                f"{folder.parent}: cannot {what} checkpoint {folder.name}: {'; '.join(problems)}; "
                "earlier checkpoints are untouched; check free space and permissions"
            )
        return result

    def _prepare(self, folder: Path) -> None:
        if not dist.is_main():
            return
        folder.mkdir(parents=True)
        last = max((f for f in self.folders()), default=None)
        if last is not None:
            needed = 1.2 * sum(f.stat().st_size for f in last.rglob("*") if f.is_file())
            free = shutil.disk_usage(self.root).free
            if free < needed:
                raise OSError(f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")

    def _rotate(self, progress: Progress) -> None:
        """Delete all but the newest `keep` and the best."""
        for old in sorted(self.folders())[: -self.keep]:
            if _step(old) != progress.best_step:
                shutil.rmtree(old)

    # Loading.

    def folders(self) -> list[Path]:
        """Checkpoint folders there are, good or bad."""
        return [f for f in self.root.glob("step_*") if f.is_dir() and f.name[5:].isdigit()]

    def load(
        self, resume: Literal["auto", "must", "never"], read: Callable[[Path], None]
    ) -> Saved | None:
        """Load the newest checkpoint that verifies through `read`; None for a fresh start.

        Raises CheckpointError when there are checkpoints but none can be used, when `resume`
        forbids what is found, or when the checkpoint belongs to another experiment.
        """
        candidates = dist.broadcast([f.name for f in sorted(self.folders(), reverse=True)])
        if not candidates:
            if resume == "must":
                raise CheckpointError(
                    f"run.resume is 'must', but there is no checkpoint in {self.root}; check "
                    "run.out, or set run.resume auto to start from the beginning"
                )
            return None
        if resume == "never":
            raise CheckpointError(
                f"run.resume is 'never', but {self.root} holds checkpoints ({candidates[0]} is the "
                "newest); choose another run.out, delete that folder, or set run.resume auto"
            )
        for name in candidates:
            folder = self.root / name
            problem, manifest = _verify(folder)
            problems = [p for p in dist.gather(problem) if p]
            if problems:
                log.warning(
                    "checkpoint %s is damaged and passed over: %s; work since the one before it "
                    "is done again",
                    folder,
                    problems[0],
                )
                continue
            self._refuse_other_run(folder, manifest)
            try:
                problem = ""
                read(folder)
            except CheckpointError as error:
                problem = str(error)
            problems = [p for p in dist.gather(problem) if p]
            if problems:
                raise CheckpointError(f"{folder} verifies but cannot be loaded: {problems[0]}")
            progress = Progress(**manifest["progress"])
            progress = replace(progress, best_ties=tuple(progress.best_ties))  # JSON has lists
            return Saved(progress, manifest["window"], manifest.get("validation_due", False))
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints in {self.root} can be used (see the "
            "warnings above); restore one from a backup, or delete the folder to start again"
        )

    def _refuse_other_run(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Raise CheckpointError naming every key in which the experiment differs."""
        theirs, ours = _flat(manifest["config"]), _flat(self.config)
        changed = [k for k in sorted(theirs | ours) if theirs.get(k) != ours.get(k)]
        told = {k: f"{k} was {theirs.get(k)!r}, now {ours.get(k)!r}" for k in changed}
        # What one side does not have was added or dropped by another version of the code.
        both = [k for k in changed if k in theirs and k in ours]
        if other := [k.removeprefix(_INPUTS) for k in both if k.startswith(_INPUTS)]:
            raise CheckpointError(
                f"{folder} belongs to a run with other contents of {' and '.join(other)}. Put the "
                "files back as they were to continue it, or choose another run.out to start a new "
                "run"
            )
        fatal = [told[k] for k in both if k.split(".")[0] in _MUST_AGREE]
        if fatal:
            raise CheckpointError(
                f"{folder} belongs to another experiment: {'; '.join(fatal)}. Put these values "
                "back to continue it, or choose another run.out to start a new one"
            )
        before, now = manifest["engine"], self.engine
        if before != now:
            raise CheckpointError(
                f"{folder} was written by engine {before}, this run uses {now}; set engine.kind "
                "and engine.zero_stage back, or start a new run.out with init.from set to the "
                "exported model"
            )
        ranks = manifest["world_size"]
        if ranks != dist.world() and now.get("zero_stage", 0) > 0:
            raise CheckpointError(
                f"{folder} holds optimizer shards of {ranks} processes, this run has "
                f"{dist.world()}; start it with {ranks} processes, or start a new run.out with "
                "init.from set to the exported model (engine.kind plain and zero_stage 0 can "
                "change the number of processes)"
            )
        minor = [k for k in changed if not k.startswith((_INPUTS, "run."))]
        others = [told[k] for k in minor]
        if ranks != dist.world():
            others.append(f"processes were {ranks}, now {dist.world()}")
        if others and dist.is_main():
            log.warning("resuming with other settings than before: %s", "; ".join(others))


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else None
        found |= inner if inner is not None else {f"{prefix}{key}": value}
    return found


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest itself, so that a flipped bit in it is found too."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest(folder: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of this rank's share of the files, which are flushed to disk on the way."""
    # A network file system may show a rank the files of other machines late, its own at once.
    seen = dist.gather([p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()])
    files = sorted({name for names in seen for name in names})
    mine = [folder / name for name in files[dist.rank() :: dist.world()]]
    found: dict[str, list[Any]] = {}
    for path in mine:
        _sync(path)
        found[path.relative_to(folder).as_posix()] = [path.stat().st_size, _sha256(path)]
    if dist.is_main():
        for inner in (p for p in folder.rglob("*") if p.is_dir()):
            _sync(inner)
    return found


def _verify(folder: Path) -> tuple[str, dict[str, Any]]:
    """What is wrong with this rank's share of a checkpoint ('' if nothing), and its manifest."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        seal = manifest.pop("sha256")
        if seal != _seal(manifest):
            return f"{path} has changed since it was written", {}
        if manifest["format"] > FORMAT:
            return f"{path} has format {manifest['format']}, this version reads {FORMAT}", {}
        items = sorted(manifest["files"].items())
    except FileNotFoundError:
        return f"{path} is missing", {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path} cannot be read: {error}", {}
    for name, (size, digest) in items[dist.rank() :: dist.world()]:
        file = folder / name
        try:
            actual = file.stat().st_size
            if actual != size:
                return f"{file} has {actual} bytes, expected {size}", {}
            if _sha256(file) != digest:
                return f"{file} has changed since it was written", {}
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}", {}
    return "", manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
