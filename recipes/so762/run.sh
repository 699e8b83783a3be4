#!/usr/bin/env bash
# speechocean762: a few hours of read English by 250 speakers, half of them children.
# Does pre-training help? Word error rate with 10 minutes and 1 hour of labels, beside the same
# network from scratch; frozen representations beside log-mel and random weights; speakers too.
#   0 manifests     1 pre-train (BEST-RQ, and SimCLR for speakers)
#   2 speech recognition (fine-tuned and frozen)       3 speaker identification (frozen)
#   4 evaluate the recognisers on dev and test         5 RESULTS.md and curves
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

# For what is said, masked prediction; for who says it, utterances against each other.
pretrain() {
  local name
  for name in pretrain pretrain_speaker; do
    at_once $name train --config $recipe/conf/$name.yaml --run.out "$out/$name" \
      --data.train "$manifests/pretrain.jsonl" --data.valid "$manifests/pretrain_valid.jsonl"
  done
  all_done
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

# Frozen: both models, random weights and log-mel under SUPERB's probe, a weighted sum of layers and
# a linear classifier on its mean over time, scored on dev and test.
speaker_identification() {
  speechssl probe "$out/pretrain_speaker/model" "$out/pretrain/model" --label speaker \
    --classifier weighted --pool mean --train "$manifests/spk_train.jsonl" \
    --test "$manifests/spk_dev.jsonl" "$manifests/spk_test.jsonl" --out "$out/speaker.json"
}

# Greedy; what was fine-tuned also over the words of a language model made of the same labels, whose
# weights are chosen on dev, for every recogniser anew, and used on test.
evaluate() {
  local run size split
  for size in $(label_sizes); do
    speechssl lm "$manifests/asr_train_$size.jsonl" --order 2 --out "$out/lm_$size.arpa" \
      --heldout "$manifests"/asr_{dev,test}.jsonl
    for run in "$out/asr/ssl_$size" "$out/asr/scratch_$size"; do
      at_once "${run##*/}" evaluate_lm "$run" dev "$out/lm_$size.arpa" \
        --lm-weight 0.4 0.7 --word-score 1 2 3
    done
  done
  all_done
  local weights
  for run in "$out"/asr/{ssl,scratch}_*; do
    read -ra weights <<<"$(lm_weights "$run/lm_dev/wer.json")"
    at_once "${run##*/}" evaluate_lm "$run" test "$out/lm_${run##*_}.arpa" "${weights[@]}"
  done
  for split in dev test; do
    for run in "$out"/asr/*; do
      at_once "${run##*/}" speechssl evaluate "$run/model" "$manifests/asr_$split.jsonl" \
        --out "$run/greedy_$split"
    done
  done
  all_done
}

# evaluate_lm RUN SPLIT ARPA WEIGHT...
evaluate_lm() {
  local run=$1 split=$2 arpa=$3
  shift 3
  speechssl evaluate "$run/model" "$manifests/asr_$split.jsonl" --out "$run/lm_$split" \
    --lm "$arpa" "$@"
}

results() {
  local size
  speechssl report "$out/pretrain" --out "$out/curves_pretrain.png"
  for size in $(label_sizes); do
    speechssl report "$out/asr/ssl_$size" "$out/asr/scratch_$size" --out "$out/curves_asr_$size.png" \
      --labels "pre-trained" "from scratch"
  done
  speechssl report "$out/pretrain_speaker" --out "$out/curves_pretrain_speaker.png"
  results_table | tee "$out/RESULTS.md"
}

# asr_row TITLE NAME SIZE: percent on dev and test; the 95 % interval is that of the word error rate
# on test, of the best decoding.
asr_row() {
  local run=$out/asr/$2_$3 lm=' | ' interval_of=greedy_test
  if [[ -d $run/lm_test ]]; then
    lm="$(percent "$run/lm_dev/wer.json" wer) | $(percent "$run/lm_test/wer.json" wer)"
    interval_of=lm_test
  fi
  printf '| %s | %s | %s | %s | %s | %s | %s | %s |\n' "$1" "$3" \
    "$(percent "$run/greedy_dev/wer.json" cer)" "$(percent "$run/greedy_test/wer.json" cer)" \
    "$(percent "$run/greedy_dev/wer.json" wer)" "$(percent "$run/greedy_test/wer.json" wer)" \
    "$lm" "$(interval "$run/$interval_of/wer.json")"
}

# speaker_row TITLE N: the N-th system of the probe, on dev and test.
speaker_row() {
  json_column "$out/speaker.json" accuracy | sed -n "$((2 * $2 - 1)),$((2 * $2))p" | tr '\n' ' ' \
    | LC_ALL=C awk -v title="$1" '{ printf "| %s | %.1f | %.1f |\n", title, 100 * $1, 100 * $2 }'
}

results_table() {
  local size
  printf '# Results: speechocean762\n\n'
  provenance
  # shellcheck disable=SC2016 # the backquotes are Markdown's
  printf -- '- command: `bash recipes/so762/run.sh%s%s`\n' "${data:+ --data DIR}" \
    "$( ((!smoke)) || printf ' --smoke')"
  printf '\n## Speech recognition, unseen speakers (percent)\n\n'
  printf 'Greedy; fine-tuned recognisers also with a bigram of the words of the same labels (LM).\n\n'
  printf '| start | labels | dev CER | test CER | dev WER | test WER | dev WER, LM | test WER, LM | 95 %% |\n'
  printf '| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n'
  for size in $(label_sizes); do
    asr_row "pre-trained, fine-tuned" ssl "$size"
    asr_row "from scratch, same budget" scratch "$size"
    asr_row "pre-trained, frozen" frozen_ssl "$size"
    asr_row "random weights, frozen" frozen_random "$size"
    asr_row "log-mel, same head" frozen_logmel "$size"
  done
  printf '\n## Speaker identification, frozen, closed set (accuracy, percent)\n\n'
  printf '| representation | dev | test |\n| --- | --- | --- |\n'
  speaker_row "SimCLR" 1
  speaker_row "BEST-RQ" 2
  speaker_row "random weights" 3
  speaker_row "log-mel" 4
}

run_stage 0 "manifests" manifest_stage
run_stage 1 "pre-train" pretrain pretrain pretrain_speaker
run_stage 2 "speech recognition" recognisers ctc ctc_10min ctc_frozen
run_stage 3 "speaker identification" speaker_identification
run_stage 4 "evaluate" evaluate
run_stage 5 "results" results
