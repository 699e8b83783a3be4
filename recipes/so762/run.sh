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
recipe=recipes/so762 takes_jobs=1
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

# asr CONFIG NAME SIZE OPTION...: one recogniser, trained on SIZE of labels; CONFIG_SIZE.yaml, where
# there is one, comes on top of CONFIG.yaml.
asr() {
  local name=$2 size=$3 configs=(--config "$recipe/conf/$1.yaml")
  if [[ -f $recipe/conf/$1_$3.yaml ]]; then configs+=(--config "$recipe/conf/$1_$3.yaml"); fi
  shift 3
  at_once "${name}_$size" train "${configs[@]}" --run.out "$out/asr/${name}_$size" "$@" \
    --data.train "$manifests/asr_train_$size.jsonl" --data.valid "$manifests/asr_dev.jsonl"
}

recognisers() {
  local size
  for size in $(label_sizes); do
    asr ctc ssl "$size" --init.from "$out/pretrain/model"
    asr ctc scratch "$size" --backbone.preset filterbank-tiny
  done
  for size in $(label_sizes); do
    asr ctc_frozen frozen_ssl "$size" --init.from "$out/pretrain/model"
    asr ctc_frozen frozen_random "$size" --backbone.preset filterbank-tiny
    asr ctc_frozen frozen_logmel "$size" --backbone.preset logmel --backbone.conv_norm group
  done
  all_done
}

# speaker CONFIG NAME OPTION...: one speaker classifier.
speaker() {
  local config=$1 name=$2
  shift 2
  at_once "speaker_$name" train --config "$recipe/conf/$config.yaml" \
    --run.out "$out/speaker/$name" "$@" \
    --data.train "$manifests/spk_train.jsonl" --data.valid "$manifests/spk_dev.jsonl"
}

speakers() {
  speaker speaker ssl --init.from "$out/pretrain/model"
  speaker speaker scratch --backbone.preset filterbank-tiny
  speaker speaker_frozen frozen_ssl --init.from "$out/pretrain/model"
  speaker speaker_frozen frozen_random --backbone.preset filterbank-tiny
  speaker speaker_frozen frozen_logmel --backbone.preset logmel --backbone.conv_norm group
}

# Frozen: the model, random weights and log-mel under a closed-form classifier of one layer.
speaker_probes() {
  local split
  for split in dev test; do
    at_once "probe_$split" speechssl probe "$out/pretrain/model" --label speaker --classifier lda \
      --train "$manifests/spk_train.jsonl" --test "$manifests/spk_$split.jsonl" \
      --out "$out/speaker_probe_$split.json"
  done
}

speaker_identification() {
  speaker_probes
  speakers
  all_done
}

evaluate() {
  local run split
  for split in dev test; do
    for run in "$out"/asr/*; do
      at_once "${run##*/}" speechssl evaluate "$run/model" "$manifests/asr_$split.jsonl" \
        --out "$run/eval_$split"
    done
    for run in "$out"/speaker/*; do
      at_once "${run##*/}" speechssl evaluate "$run/model" "$manifests/spk_$split.jsonl" \
        --out "$run/eval_$split"
    done
  done
  all_done
}

results() {
  local size
  speechssl report "$out/pretrain" --out "$out/curves_pretrain.png"
  for size in $(label_sizes); do
    speechssl report "$out/asr/ssl_$size" "$out/asr/scratch_$size" --out "$out/curves_asr_$size.png" \
      --labels "pre-trained" "from scratch"
  done
  speechssl report "$out"/speaker/{ssl,scratch} --out "$out/curves_speaker.png" \
    --labels "pre-trained" "from scratch"
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

# The N-th system of the probe: the model, random weights, log-mel.
probe_row() {
  local dev test
  dev=$(json_column "$out/speaker_probe_dev.json" accuracy | sed -n "$2p")
  test=$(json_column "$out/speaker_probe_test.json" accuracy | sed -n "$2p")
  LC_ALL=C awk -v title="$1" -v dev="$dev" -v test="$test" \
    'BEGIN { printf "| %s | %.1f | %.1f |\n", title, 100 * dev, 100 * test }'
}

results_table() {
  local size
  printf '# Results: speechocean762\n\n'
  provenance
  # shellcheck disable=SC2016 # the backquotes are Markdown's
  printf -- '- command: `bash recipes/so762/run.sh%s%s`\n' "${data:+ --data DIR}" \
    "$( ((!smoke)) || printf ' --smoke')"
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
  speaker_row "pre-trained, frozen, weighted sum" frozen_ssl
  speaker_row "random weights, frozen, weighted sum" frozen_random
  speaker_row "log-mel, same probe" frozen_logmel
  probe_row "pre-trained, frozen, best layer, LDA" 1
  probe_row "random weights, frozen, best layer, LDA" 2
  probe_row "log-mel, LDA" 3
  speaker_row "pre-trained, fine-tuned" ssl
  speaker_row "from scratch, same budget" scratch
}

run_stage 0 "manifests" manifest_stage
run_stage 1 "pre-train wav2vec 2.0" pretrain pretrain
run_stage 2 "speech recognition" recognisers ctc ctc_10min ctc_frozen
run_stage 3 "speaker identification" speaker_identification speaker speaker_frozen
run_stage 4 "evaluate" evaluate
run_stage 5 "results" results
