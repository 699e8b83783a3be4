#!/usr/bin/env bash
# Free Spoken Digit Dataset, leave one speaker out: pre-train on connected digits of the others,
# then ask a linear probe which digit the held-out speaker says. Beside log-mel and random weights.
#   0 manifests     1 pre-train one model a fold     2 probe     3 RESULTS.md and curves
# --data is the folder that holds fsdd/ (manifest.jsonl and audio), or the original recordings/.
#   INIT   a model folder to probe instead of stage 1: pre-trained on speech of other people
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
recipe=recipes/digits takes_jobs=1
source recipes/_lib/stages.sh
parse_options "$@"
source recipes/_lib/setup.sh
source recipes/_lib/results.sh
manifests=$out/manifests
init=${INIT:-}
settings=$init
label=digit inner=(--group speaker) # settings are chosen on training speakers the inner fit has not heard
if ((smoke)) && [[ -z $data ]]; then label=speaker inner=(); fi

manifest_stage() {
  if ((smoke)) && [[ -z $data ]]; then
    demo_as_digits
    return
  fi
  need_data "a folder with fsdd/ or recordings/"
  python -m data_prep.fsdd prepare "$data" "$manifests"
}

# --smoke without --data: one fold of the demo corpus, asked who speaks.
demo_as_digits() {
  demo_speech "$manifests"
  cp "$manifests/pretrain.jsonl" "$manifests/pretrain_without_demo.jsonl"
  cp "$manifests/spk_train.jsonl" "$manifests/loso_demo_train.jsonl"
  cp "$manifests/spk_test.jsonl" "$manifests/loso_demo_test.jsonl"
}

# The speakers to leave out, one a line; a smoke run is content with the first.
folds() {
  local file names=()
  for file in "$manifests"/pretrain_without_*.jsonl; do
    file=${file##*/pretrain_without_}
    names+=("${file%.jsonl}")
  done
  if ((smoke)); then names=("${names[0]}"); fi
  printf '%s\n' "${names[@]}"
}

pretrain() {
  local speaker
  if [[ -n $init ]]; then
    printf 'nothing to pre-train: INIT is %s\n' "$init"
    return
  fi
  for speaker in $(folds); do
    at_once "without_$speaker" train --config $recipe/conf/pretrain.yaml \
      --run.out "$out/without_$speaker" --data.train "$manifests/pretrain_without_$speaker.jsonl"
  done
  all_done
}

probe() {
  local speaker
  for speaker in $(folds); do
    speechssl probe "${init:-$out/without_$speaker/model}" --label "$label" ${inner[@]+"${inner[@]}"} \
      --train "$manifests/loso_${speaker}_train.jsonl" \
      --test "$manifests/loso_${speaker}_test.jsonl" --out "$out/probe_$speaker.json"
  done
}

# Rows of a probe: the model, the same network with random weights, log-mel.
results_table() {
  local speaker row
  printf '# Results: digits, leave one speaker out\n\n'
  provenance
  # shellcheck disable=SC2016 # the backquotes are Markdown's
  printf -- '- command: `%sbash recipes/digits/run.sh%s`\n' "${init:+INIT=$init }" \
    "$( ((!smoke)) || printf ' --smoke')"
  printf '\nFrozen linear probe of the %s, accuracy in percent.\n\n' "$label"
  printf '| speaker left out | pre-trained | random weights | log-mel |\n| --- | --- | --- | --- |\n'
  for speaker in $(folds); do
    row=$(json_column "$out/probe_$speaker.json" accuracy | tr '\n' ' ')
    printf '%s %s\n' "$speaker" "$row"
  done | LC_ALL=C awk '
    { printf "| %s | %.1f | %.1f | %.1f |\n", $1, 100 * $2, 100 * $3, 100 * $4
      for (i = 2; i <= 4; i++) sum[i] += 100 * $i }
    END { printf "| **mean** | **%.1f** | %.1f | %.1f |\n", sum[2] / NR, sum[3] / NR, sum[4] / NR }'
}

results() {
  local speaker runs=()
  if [[ -z $init ]]; then
    for speaker in $(folds); do runs+=("$out/without_$speaker"); done
    speechssl report "${runs[@]}" --out "$out/curves.png"
  fi
  results_table | tee "$out/RESULTS.md"
}

run_stage 0 "manifests" manifest_stage
run_stage 1 "pre-train BEST-RQ, one model a fold" pretrain pretrain
run_stage 2 "probe" probe
run_stage 3 "results" results
