#!/usr/bin/env bash
# speechocean762: a few hours of read English by 250 speakers, half of them children.
# Does pre-training help? Word error rate with 10 minutes and 1 hour of labels, beside the same
# network from scratch; frozen representations beside log-mel and random weights; speakers too.
#   0 manifests     1 pre-train      2 speech recognition (fine-tuned and frozen)
#   3 speaker identification (frozen and fine-tuned)   4 evaluate on dev and test
#   5 RESULTS.md and curves
# --data is the folder that holds so762_full/ or so762/ (manifest.jsonl and audio).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
recipe=recipes/so762
source recipes/_lib/stages.sh
parse_options "$@"
source recipes/_lib/setup.sh
source recipes/_lib/results.sh
manifests=$out/manifests
label_sizes() { # the smaller corpus has no hour of labels
  local size
  for size in 10min 1h; do
    if [[ -f $manifests/asr_train_$size.jsonl ]]; then printf '%s\n' "$size"; fi
  done
}

manifest_stage() {
  if ((smoke)) && [[ -z $data ]]; then
    demo_as_so762
    return
  fi
  need_data "a folder with so762_full/ or so762/"
  python -m data_prep.so762 prepare "$data" "$manifests"
}

# --smoke without --data: the demo corpus under the names of this one.
demo_as_so762() {
  demo_speech "$manifests"
  local size
  for size in 10min 1h; do cp "$manifests/asr_train.jsonl" "$manifests/asr_train_$size.jsonl"; done
}

pretrain() {
  train --config $recipe/conf/pretrain.yaml --run.out "$out/pretrain" \
    --data.train "$manifests/pretrain.jsonl" --data.valid "$manifests/pretrain_valid.jsonl"
}

# asr CONFIG NAME SIZE OPTION...: one recogniser, trained on SIZE of labels; an hour takes longer.
asr() {
  local config=$1 name=$2 size=$3 budget=()
  shift 3
  if [[ $size == 1h ]]; then budget=(--optim.steps 2000 --optim.hold_steps 800); fi
  train --config "$recipe/conf/$config.yaml" --run.out "$out/asr/${name}_$size" "$@" \
    ${budget[@]+"${budget[@]}"} \
    --data.train "$manifests/asr_train_$size.jsonl" --data.valid "$manifests/asr_dev.jsonl"
}

recognisers() {
  local size
  for size in $(label_sizes); do
    asr ctc ssl "$size" --init.from "$out/pretrain/model"
    asr ctc scratch "$size" --backbone.preset tiny
    asr ctc_frozen frozen_ssl "$size" --init.from "$out/pretrain/model"
    asr ctc_frozen frozen_random "$size" --backbone.preset tiny
    asr ctc_frozen frozen_logmel "$size" --backbone.preset logmel --backbone.conv_norm group
  done
}

# speaker CONFIG NAME OPTION...: one speaker classifier.
speaker() {
  local config=$1 name=$2
  shift 2
  train --config "$recipe/conf/$config.yaml" --run.out "$out/speaker/$name" "$@" \
    --data.train "$manifests/spk_train.jsonl" --data.valid "$manifests/spk_dev.jsonl"
}

speakers() {
  speaker speaker ssl --init.from "$out/pretrain/model"
  speaker speaker random --backbone.preset tiny
  speaker speaker logmel --backbone.preset logmel
  speaker speaker_finetune finetuned_ssl --init.from "$out/pretrain/model"
  speaker speaker_finetune finetuned_scratch --backbone.preset tiny
}

evaluate() {
  local run split
  for split in dev test; do
    for run in "$out"/asr/*; do
      speechssl evaluate "$run/model" "$manifests/asr_$split.jsonl" --out "$run/eval_$split"
    done
    for run in "$out"/speaker/*; do
      speechssl evaluate "$run/model" "$manifests/spk_$split.jsonl" --out "$run/eval_$split"
    done
  done
}

results() {
  local size
  speechssl report "$out/pretrain" --out "$out/curves_pretrain.png"
  for size in $(label_sizes); do
    speechssl report "$out/asr/ssl_$size" "$out/asr/scratch_$size" --out "$out/curves_asr_$size.png" \
      --labels "pre-trained" "from scratch"
  done
  speechssl report "$out"/speaker/{ssl,random,logmel} --out "$out/curves_speaker.png" \
    --labels "pre-trained" random log-mel
  results_table | tee "$out/RESULTS.md"
}

# asr_row TITLE NAME SIZE: WER and CER in percent on dev and test, with the 95 % interval on test.
asr_row() {
  local dev=$out/asr/$2_$3/eval_dev/wer.json test=$out/asr/$2_$3/eval_test/wer.json
  printf '| %s | %s | %s | %s | %s | %s | %s |\n' "$1" "$3" \
    "$(percent "$dev" wer)" "$(percent "$dev" cer)" \
    "$(percent "$test" wer)" "$(interval "$test")" "$(percent "$test" cer)"
}

speaker_row() {
  local dev=$out/speaker/$2/eval_dev/speaker.json test=$out/speaker/$2/eval_test/speaker.json
  printf '| %s | %s | %s |\n' "$1" "$(percent "$dev" accuracy)" "$(percent "$test" accuracy)"
}

results_table() {
  local size
  printf '# Results: speechocean762\n\n'
  provenance
  # shellcheck disable=SC2016 # the backquotes are Markdown's
  printf -- '- command: `bash recipes/so762/run.sh%s`\n' "$( ((!smoke)) || printf ' --smoke')"
  printf '\n## Speech recognition, greedy decoding, unseen speakers (percent)\n\n'
  printf '| start | labels | dev WER | dev CER | test WER | 95 %% interval | test CER |\n'
  printf '| --- | --- | --- | --- | --- | --- | --- |\n'
  for size in $(label_sizes); do
    asr_row "pre-trained, fine-tuned" ssl "$size"
    asr_row "from scratch, same budget" scratch "$size"
    asr_row "pre-trained, frozen" frozen_ssl "$size"
    asr_row "random weights, frozen" frozen_random "$size"
    asr_row "log-mel, same head" frozen_logmel "$size"
  done
  printf '\n## Speaker identification, closed set (accuracy, percent)\n\n'
  printf '| start | dev | test |\n| --- | --- | --- |\n'
  speaker_row "pre-trained, frozen" ssl
  speaker_row "random weights, frozen" random
  speaker_row "log-mel, same head" logmel
  speaker_row "pre-trained, fine-tuned" finetuned_ssl
  speaker_row "from scratch, same budget" finetuned_scratch
}

run_stage 0 "manifests" manifest_stage
run_stage 1 "pre-train wav2vec 2.0" pretrain pretrain
run_stage 2 "speech recognition" recognisers ctc ctc_frozen
run_stage 3 "speaker identification" speakers speaker speaker_finetune
run_stage 4 "evaluate" evaluate
run_stage 5 "results" results
