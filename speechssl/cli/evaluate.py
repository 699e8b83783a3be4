"""`speechssl evaluate`: error rates, speaker accuracy and EER, or validation loss of a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.cli.inputs import add_model_options, add_search_options
from speechssl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from speechssl.data.skips import Skips
    from speechssl.models.bundle import Bundle
    from speechssl.types import Utterance


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl evaluate",
        description="CTC models: word and character error rates with files to read (wer.txt, "
        "wer.json, ref.trn, hyp.trn). Speaker models: accuracy, EER, minDCF. Self-supervised "
        "models: validation loss and metrics beside their chance levels.",
    )
    p.add_argument("model", help="model folder or hub id")
    p.add_argument("manifest", help="manifest (.jsonl) of the test set")
    p.add_argument("--out", help="folder for the files (default: only print)")
    add_search_options(p, several=True)
    p.add_argument(
        "--text-policy",
        default="raw",
        help="compare as written (raw), without case (upper), or also without punctuation (plain)",
    )
    p.add_argument("--trials", help="speaker trial list; default: pairs drawn from the manifest")
    add_model_options(p)
    p.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    args = parser().parse_args(argv)
    from speechssl.cli.inputs import pick_device, tell_skipped
    from speechssl.data.manifest import read_manifest
    from speechssl.data.skips import Skips
    from speechssl.downstream.ctc import CTC
    from speechssl.downstream.speaker import Speaker
    from speechssl.models.bundle import load

    utterances = read_manifest(args.manifest)
    bundle = load(args.model, pick_device(args.device), plugins=args.plugins)
    if bundle.objective is None:
        raise ConfigError(
            f"model {args.model} is a bare backbone, which has no loss to evaluate; see what it "
            "knows: speechssl probe"
        )
    skips = Skips()
    name = "metrics.json"
    if isinstance(bundle.objective, CTC):
        name = "wer.json"
        results, table = recognition(bundle, utterances, args, skips)
    elif isinstance(bundle.objective, Speaker):
        name = "speaker.json"
        results, table = speakers(bundle, utterances, args, skips)
    else:
        results, table = pretraining(bundle, utterances, args, skips)
    results = {"model": args.model, "manifest": args.manifest, "skipped": skips.total} | results
    tell_skipped(skips)
    print(json.dumps(results, ensure_ascii=False) if args.json else table)
    if args.out:
        from speechssl.atomic import write_text

        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        write_text(Path(args.out) / name, text)
        if not args.json:
            print(f"files in {args.out}")
    return 0


def recognition(
    bundle: Bundle, utterances: Sequence[Utterance], args: argparse.Namespace, skips: Skips
) -> tuple[dict[str, Any], str]:
    """Error rates of a CTC model; audio that cannot be used counts as an empty answer."""
    from speechssl.cli.inputs import beam_of, language_models
    from speechssl.cli.scoring import transcribe_all
    from speechssl.evaluation import wer

    scored = [u for u in utterances if u.text is not None]
    for u in utterances:
        if u.text is None:
            skips.add("no_text", u.id, f"'{u.id}' has no reference and is not scored")
    if not scored:
        raise DataError(f"none of {len(utterances)} utterances in {args.manifest} has a text")
    lms, beam = language_models(args), beam_of(args)
    found, tuned = transcribe_all(
        bundle, scored, beam, lms, args.batch_sec, skips, args.text_policy
    )
    report = wer.score(
        {u.id: u.text or "" for u in scored},
        {u.id: found[i].text if i in found else "" for i, u in enumerate(scored)},
        {u.id: u.speaker for u in scored if u.speaker is not None},
        policy=args.text_policy,
    )
    if args.out:
        report.write(args.out)
    results = report.to_json() | {"beam": beam}
    lines = [report.summary().rstrip()]
    if lms:
        best = tuned[0].lm if tuned else lms[0]
        results |= {"lm": args.lm, "lm_weight": best.lm_weight, "word_score": best.word_score}
        lines.append(f"language model {args.lm}, {len(best.words)} words")
    for one in tuned:
        if one is tuned[0]:
            lines += ["", "lm-weight  word-score     WER (chosen on these very utterances)"]
        lines.append(f"{one.lm.lm_weight:9g} {one.lm.word_score:11g}  {one.wer:6.2%}")
    if report.per_speaker:
        lines += ["", f"{'speaker':<16}    WER  errors   words"]
        ranked = sorted(report.per_speaker.items(), key=lambda row: (-row[1].errors, row[0]))
        lines += [f"{n:<16} {c.rate:6.1%} {c.errors:7d} {c.ref:7d}" for n, c in ranked[:10]]
        if len(ranked) > 10:
            rest = "all of them in wer.txt" if args.out else "--out DIR writes all of them"
            lines.append(f"({len(ranked) - 10} more speakers; {rest})")
    return results, "\n".join(lines)


def speakers(
    bundle: Bundle, utterances: Sequence[Utterance], args: argparse.Namespace, skips: Skips
) -> tuple[dict[str, Any], str]:
    """Accuracy over the speakers the model knows, and detection scores over trials."""
    import numpy as np

    from speechssl.cli.scoring import speaker_answers
    from speechssl.evaluation import eer

    found = speaker_answers(bundle, utterances, args.batch_sec, skips)
    answers = {utterances[index].id: answer for index, answer in found.items()}
    known = [u for u in utterances if u.speaker in bundle.classes]
    right = sum(u.id in answers and answers[u.id].name == u.speaker for u in known)
    results: dict[str, Any] = {"utterances": len(utterances), "of_known_speakers": len(known)}
    lines: list[str] = []
    if known:
        results |= {"accuracy": right / len(known), "chance": 1 / len(bundle.classes)}
        lines.append(
            f"accuracy  {right / len(known):.2%}  {right}/{len(known)} utterances of "
            f"{len({u.speaker for u in known})} speakers (chance {1 / len(bundle.classes):.2%})"
        )
    if args.trials:
        pairs = eer.read_trials(args.trials)
    else:
        named = [u for u in utterances if u.speaker is not None and u.id in answers]
        try:
            pairs = eer.trials([u.id for u in named], [u.speaker or "" for u in named])
        except DataError as error:  # one utterance a speaker: nothing to verify
            lines.append(f"no EER    {error}")
            return results, "\n".join(lines)
    scores = eer.cosine_scores(pairs, {name: a.embedding for name, a in answers.items()})
    report = eer.score(scores, np.array([pair.target for pair in pairs]))
    results |= report.to_json()
    lines.append(
        f"EER       {report.eer:.2%}  {report.num_target} target and {report.num_nontarget} "
        f"non-target trials\nminDCF    {report.min_dcf_01:.3f} (prior 0.01)  "
        f"{report.min_dcf_05:.3f} (prior 0.05)"
    )
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        eer.write_scores(Path(args.out) / "scores.txt", pairs, scores)
    return results, "\n".join(lines)


def pretraining(
    bundle: Bundle, utterances: Sequence[Utterance], args: argparse.Namespace, skips: Skips
) -> tuple[dict[str, Any], str]:
    """Loss and metrics of a self-supervised model, or of another package's objective.

    Crops and masks are those of the default data.seed and data.max_sec, so the numbers equal those
    of validation in training only where the run kept these defaults.
    """
    import torch

    from speechssl.cli.assembly import target_readers
    from speechssl.data.config import DataConfig
    from speechssl.data.loader import EvalData
    from speechssl.engine.metrics import Metrics

    model = bundle.objective
    assert model is not None
    longest = min(DataConfig.max_sec, args.batch_sec)
    cfg = DataConfig(
        max_sec=longest, min_sec=0.0, batch_sec=args.batch_sec, update_sec=args.batch_sec, workers=0
    )
    targets = target_readers(model, utterances)
    geometry = bundle.backbone.geometry
    data = EvalData(utterances, geometry, cfg, model.plan_fn(), skips=skips, **targets)
    device = next(model.parameters()).device
    sums = Metrics()
    model.eval()
    with torch.no_grad():
        for batch in data.batches():
            loss = model(batch.to(device))
            if batch.num_targets:
                sums.add("loss", loss.total, loss.count)
                sums.merge(loss.logs)
    values, levels = sums.scalars(model.summary), model.chance()
    width = max(map(len, values), default=0)
    lines = [
        f"{name:<{width}}  {value:.4g}"
        + (f"  (chance {levels[name]:.4g})" if name in levels else "")
        for name, value in values.items()
    ]
    return {"metrics": values, "chance": levels, "utterances": len(data.utterances)}, "\n".join(
        lines
    )
