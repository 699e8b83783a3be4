#!/usr/bin/env bash
# The tutorial: from nothing to a self-supervised model, speech recognition and speaker
# identification, on synthetic voices made here. Minutes on two CPU cores, installation aside.
#   0 demo corpus   1 pre-train (wav2vec 2.0)   2 fine-tune CTC   3 speaker classifier
#   4 evaluate      5 curves and summary
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
recipe=recipes/mini
source recipes/_lib/stages.sh
parse_options "$@"
source recipes/_lib/setup.sh
source recipes/_lib/results.sh
manifests=${data:-$out/data}

demo_corpus() {
  if [[ -z $data ]]; then
    demo_speech "$manifests"
  fi
  speechssl manifest "$manifests/pretrain.jsonl"
}

pretrain() {
  train --config $recipe/conf/pretrain.yaml --run.out "$out/pretrain" \
    --data.train "$manifests/pretrain.jsonl" --data.valid "$manifests/pretrain_valid.jsonl"
}

finetune_ctc() {
  train --config $recipe/conf/ctc.yaml --run.out "$out/asr" --init.from "$out/pretrain/model" \
    --data.train "$manifests/asr_train.jsonl" --data.valid "$manifests/asr_dev.jsonl"
}

speaker_classifier() {
  train --config $recipe/conf/speaker.yaml --run.out "$out/speaker" \
    --init.from "$out/pretrain/model" \
    --data.train "$manifests/spk_train.jsonl" --data.valid "$manifests/spk_dev.jsonl"
}

evaluate() {
  speechssl evaluate "$out/asr/model" "$manifests/asr_test.jsonl" --out "$out/eval/asr"
  speechssl evaluate "$out/speaker/model" "$manifests/spk_test.jsonl" --out "$out/eval/speaker"
}

report() {
  speechssl report "$out/pretrain" "$out/asr" "$out/speaker" --out "$out/curves.png"
}

summary() {
  cat <<TEXT

Word error rate on unseen voices      $(percent "$out/eval/asr/wer.json" wer) %   (characters: $(percent "$out/eval/asr/wer.json" cer) %)
Speaker accuracy on unseen sentences  $(percent "$out/eval/speaker/speaker.json" accuracy) %
Synthetic speech and a few minutes of training: these numbers say that everything works, not how well.

Where everything lies, below $out:
  data/              the demo corpus and its manifests
  pretrain/model     the self-supervised model      asr/model, speaker/model   the fine-tuned ones
  eval/asr/wer.txt   every test sentence, reference over hypothesis
  curves.png         learning curves                logs/    one log a stage

What to type next:
  source .venv/bin/activate
  speechssl predict $out/asr/model YOUR.wav
  speechssl extract $out/pretrain/model $manifests/asr_test.jsonl $out/features
  bash recipes/so762/run.sh --help      real speech
TEXT
}

run_stage 0 "demo corpus" demo_corpus
run_stage 1 "pre-train wav2vec 2.0" pretrain pretrain
run_stage 2 "fine-tune CTC" finetune_ctc ctc
run_stage 3 "speaker classifier" speaker_classifier speaker
run_stage 4 "evaluate" evaluate
run_stage 5 "learning curves" report
if ((stop_stage >= 5)); then summary; fi
