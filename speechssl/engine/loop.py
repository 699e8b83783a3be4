"""The training loop: update, report, validate, keep the best, save, stop when asked."""

from __future__ import annotations

import errno
import fcntl
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from torch import Tensor

from speechssl.engine import dist
from speechssl.engine.base import DivergedError, Engine, InterruptedAndSaved, StepStats
from speechssl.engine.checkpoint import CheckpointStore, Saved
from speechssl.engine.config import EngineConfig, OptimConfig, RunConfig
from speechssl.engine.failures import kept_tracebacks
from speechssl.engine.journal import Journal, read_metrics
from speechssl.engine.metrics import Metrics
from speechssl.engine.signals import StopSignal
from speechssl.engine.watchdog import Watchdog
from speechssl.errors import ConfigError
from speechssl.types import Batch, Progress

if TYPE_CHECKING:
    from speechssl.data.loader import EvalData, TrainData
    from speechssl.objectives.base import Objective

log = logging.getLogger(__name__)

#: How network file systems that are mounted without locks refuse one.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})

Export = Callable[[Path, dict[str, Tensor]], None]


def train(
    objective: Objective,
    train_data: TrainData,
    valid_data: EvalData | None,
    run: RunConfig,
    optim: OptimConfig,
    engine: EngineConfig,
    *,
    export: Export,
    config: Mapping[str, Any],
    seed: int = 1,
) -> Progress:
    """Train until `optim.steps` updates are done, from the newest checkpoint if there is one.

    `export(folder, state_dict)` writes a model folder; rank 0 calls it for `run.out/model_best`
    (when there is validation data) and `run.out/model_last`. `config` is the resolved
    configuration, kept in checkpoints and compared on resume. `seed` keys dropout and LayerDrop.

    Raises InterruptedAndSaved after a signal, CheckpointError, ConfigError, DivergedError.
    """
    out = Path(run.out)
    device = dist.setup(group=engine.kind == "deepspeed")
    rate_hz = objective.backbone.geometry.rate_hz
    chance = objective.chance()
    start = Progress(max_steps=optim.steps, seed=seed)

    with StopSignal() as stop, _sole_owner(out), kept_tracebacks(out) as place:
        runner = build_engine(objective, optim, engine, device, start, out)
        store = CheckpointStore(out / "ckpt", run.keep, runner.describe(), config)
        window = Metrics()
        saved = store.load(run.resume, runner.load)
        if saved is not None:
            runner.progress = replace(saved.progress, max_steps=optim.steps)
            window.restore(saved.window)
            log.info("resuming after step %d of %d", runner.progress.step, optim.steps)
        first = place.step = runner.progress.step
        journal = Journal(out, first, optim.steps, speaks=dist.is_main())
        watchdog = Watchdog(objective, optim.warmup_steps, run.watchdog_steps)
        watchdog.recall(dist.broadcast(read_metrics(journal.path) if dist.is_main() else []))

        def record(split: str, values: dict[str, float]) -> None:
            """Tell them, and what they mean where that is nothing good."""
            step = runner.progress.step
            journal.record(step, split, values, chance)
            found = watchdog.observe(step, split, values) if run.watchdog != "off" else []
            for finding in found:
                if dist.is_main():
                    log.warning("watchdog: %s", finding)
            if found and run.watchdog == "stop":
                journal.close()
                raise DivergedError(
                    f"stopped at step {step} by run.watchdog: {'; '.join(found)}. All was well at "
                    f"step {watchdog.healthy_step}; checkpoints are in {store.root}"
                )

        updates = train_data.updates(first)

        def validated() -> bool:
            """Validate and keep the best; False where a signal cut it short: half is none."""
            if valid_data is None:
                return True
            scores = runner.evaluate(stop.until_heard(valid_data.batches()))
            if dist.any_true(bool(stop)):
                return False
            progress = runner.progress
            record("valid", scores)
            score, *ties = _judged_by(objective, scores)
            best = None if progress.best is None else (progress.best, *progress.best_ties)
            if _better((score, *ties), best, [more for _, more in objective.best_metric]):
                runner.progress = replace(
                    progress, best=score, best_ties=tuple(ties), best_step=progress.step
                )
                _export(runner, export, out / "model_best")
            return True

        def save(*, validation_due: bool) -> None:
            store.save(Saved(runner.progress, window.state(), validation_due), runner.save)

        def stop_here() -> InterruptedAndSaved:
            journal.close()
            return InterruptedAndSaved(
                f"{stop.name or 'another rank was'} signalled at step {runner.progress.step} of "
                f"{optim.steps}; the checkpoint is in {store.root}: run the same command again to "
                "go on"
            )

        if saved is not None and saved.validation_due:
            if not validated():
                raise stop_here()  # the checkpoint still says that it is due
            save(validation_due=False)
        clock = monotonic()
        for micro in updates:
            if runner.progress.step >= optim.steps:
                break
            stats = runner.step(micro)
            step = place.step = runner.progress.step
            _account(window, stats, micro, rate_hz, monotonic() - clock)
            journal.advance(step)
            finished = step == optim.steps
            if step % run.log_every_steps == 0 or finished:
                record("train", _report(window, objective, stats))
                window.clear()
            due = (step % run.valid_every_steps == 0 or finished) and not validated()
            stopping = dist.any_true(bool(stop))
            if step % run.save_every_steps == 0 or finished or stopping:
                save(validation_due=due)
            if stopping and (due or not finished):
                raise stop_here()
            if finished:
                break
            clock = monotonic()  # what was validated and saved is not training time
        _close(updates)
        _export(runner, export, out / "model_last")
        journal.close()
        models = "model_last" if runner.progress.best is None else "model_best, model_last"
        if dist.is_main():
            log.info("finished step %d; in %s: %s, metrics.jsonl", optim.steps, out, models)
        return runner.progress


def build_engine(
    objective: Objective,
    optim: OptimConfig,
    cfg: EngineConfig,
    device: Any,
    progress: Progress,
    out: Path | None = None,
) -> Engine:
    """The engine that `cfg.kind` names; DeepSpeed is imported only when it is chosen."""
    if cfg.kind == "plain":
        from speechssl.engine.plain import PlainEngine

        return PlainEngine(objective, optim, cfg, device, progress)
    from speechssl.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(objective, optim, cfg, device, progress, out=out)


def _account(
    window: Metrics, stats: StepStats, micro: Sequence[Batch], rate_hz: int, seconds: float
) -> None:
    """Add an update to the window; a skipped one counts as skipped and nothing else."""
    window.add("seconds", seconds, 1.0)
    window.add("skipped_updates", float(not stats.finite), 1.0)
    window.add("grad_norm", stats.grad_norm if stats.finite else 0.0, float(stats.finite))
    for batch in micro:
        if batch.num_targets:  # fillers are not data
            samples = float(batch.wave_lens.sum())
            window.add("audio_sec", samples / rate_hz, 1.0)
            window.add("padding", batch.wave.numel() - samples, batch.wave.numel())
    if stats.finite:
        window.merge(stats.logs | {"loss": stats.loss})


def _report(window: Metrics, objective: Objective, stats: StepStats) -> dict[str, float]:
    """The scalars of a log line: the objective's, then the engine's."""
    sums = window.reduced()
    own = {
        name: sums.pop(name)
        for name in ("seconds", "skipped_updates", "grad_norm", "audio_sec", "padding")
        if name in sums
    }
    values: dict[str, float] = {}
    if "loss" in sums:
        values["loss"] = float(sums["loss"].total) / max(float(sums["loss"].count), 1.0)
    values |= {name: float(value) for name, value in objective.summary(sums).items()}
    values["lr"] = stats.lr
    values["grad_norm"] = float(own["grad_norm"].total) / max(float(own["grad_norm"].count), 1.0)
    if "audio_sec" in own:
        seconds = float(own["seconds"].total) / dist.world()
        values["audio_sec_per_sec"] = float(own["audio_sec"].total) / max(seconds, 1e-9)
        values["padding"] = float(own["padding"].total) / max(float(own["padding"].count), 1.0)
    values["skipped_updates"] = float(own["skipped_updates"].total) / dist.world()
    return values


def _judged_by(objective: Objective, scores: Mapping[str, float]) -> list[float]:
    """The scores that the objective is judged by, the first one first."""
    names = [name for name, _ in objective.best_metric]
    if missing := [name for name in names if name not in scores]:
        raise ConfigError(
            f"{type(objective).__name__}.best_metric asks for {', '.join(missing)}, but validation "
            f"gave {', '.join(sorted(scores)) or 'nothing'}; is data.valid empty?"
        )
    return [scores[name] for name in names]


def _better(
    scores: Sequence[float], best: Sequence[float] | None, more_is_better: Sequence[bool]
) -> bool:
    """Whether `scores` beat `best`, each one deciding where those before it are equal."""
    if math.isnan(scores[0]):
        return False

    def order(values: Sequence[float]) -> list[float]:
        signed = [v if more else -v for v, more in zip(values, more_is_better, strict=False)]
        return [-math.inf if math.isnan(v) else v for v in signed]

    return best is None or order(scores)[: len(best)] > order(best)


def _export(runner: Engine, export: Export, folder: Path) -> None:
    weights = runner.full_state_dict()
    if dist.is_main():
        export(folder, weights)
    dist.barrier()


def _close(updates: Iterator[Any]) -> None:
    """End a generator's workers now rather than at interpreter exit."""
    close = getattr(updates, "close", None)
    if close is not None:
        close()


@contextmanager
def _sole_owner(out: Path) -> Iterator[None]:
    """Hold the run folder, so that a second run into it is refused; freed even by kill -9."""
    problem, lock = "", None
    if dist.is_main():
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = (out / ".lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = f"run.out {out} is in use by another run; wait for it or choose another"
        except OSError as error:
            if lock is None or error.errno not in _NO_LOCKS:
                problem = f"run.out {out} cannot be written: {error.strerror}; choose another"
            else:
                log.warning("%s cannot be locked; see that no second run writes there", out)
    problem = dist.broadcast(problem)
    try:
        if problem:
            raise ConfigError(problem)
        yield
    finally:
        if lock is not None:
            lock.close()
