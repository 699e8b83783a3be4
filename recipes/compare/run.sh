#!/usr/bin/env bash
# Every objective on the same backbone, the same audio and the same number of updates. What is learnt
# is asked of frozen features (digits of a speaker never heard, who speaks) and by a recogniser
# fine-tuned with 10 minutes of labels; beside random weights, log-mel and training from scratch.
#   0 manifests     1 cluster labels     2 train and measure     3 RESULTS.md
# Every finished system is a small file in results/, which is reused: what is there is not trained
# again, so the table can grow over several sittings. Remove a file to measure its system anew.
# --data is the folder that holds so762_full/ (or so762/) and fsdd/.
#   ONLY    the systems to measure, names of conf/ (default: all; random and hubert under --smoke):
#           ONLY="hubert bestrq"
#   SEEDS   the seeds of each (default: 1): SEEDS="1 2 3"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
recipe=recipes/compare takes_jobs=1
source recipes/_lib/stages.sh
parse_options "$@"
source recipes/_lib/setup.sh
source recipes/_lib/results.sh
manifests=$out/manifests labels=$out/labels
digits=$manifests/digits/digits.jsonl label=digit group=(--group speaker)
if ((smoke)) && [[ -z $data ]]; then
  digits=$manifests/spk_train.jsonl label=speaker group=(--test "$manifests/spk_test.jsonl")
fi
seeds=${SEEDS:-1}
results=$recipe/results
if ((smoke)); then results=$out/results; fi
if ((smoke)); then ONLY=${ONLY:-random hubert}; fi
only=${ONLY:-$(cd $recipe/conf && printf '%s\n' *.yaml | sed 's/\.yaml$//' | grep -v '^_')}

manifest_stage() {
  if ((smoke)) && [[ -z $data ]]; then
    demo_speech "$manifests"
    cp "$manifests/asr_train.jsonl" "$manifests/asr_train_10min.jsonl"
    return
  fi
  need_data "a folder with so762_full/ or so762/, and fsdd/"
  python -m data_prep.so762 prepare "$data" "$manifests"
  python -m data_prep.fsdd prepare "$data" "$manifests/digits"
}

# For the objectives that predict clusters.
label() {
  rm -rf "$labels"
  speechssl cluster "$manifests"/pretrain{,_valid}.jsonl --out "$labels" --clusters 100 --norm utterance
}

measure_all() {
  local seed name
  mkdir -p "$results"
  for seed in $seeds; do
    for name in $only; do
      [[ -f $recipe/conf/$name.yaml ]] || option_error "ONLY: there is no conf/$name.yaml"
      if [[ -f $results/${name}_$seed.json ]]; then
        printf '%s, seed %s: measured before, see %s\n' "$name" "$seed" "$results"
      else
        at_once "${name}_$seed" measure "$name" "$seed"
      fi
    done
  done
  all_done
}

# measure NAME SEED: pre-train, three questions, one file; `random` answers for log-mel as well.
measure() {
  local name=$1 seed=$2 run=$out/runs/$1_$2 lists=$manifests baseline=none began=$SECONDS seconds
  if grep -q '^# labels' "$recipe/conf/$name.yaml"; then lists=$labels; fi
  if [[ $name == random ]]; then baseline=logmel; fi
  train --config $recipe/conf/_common.yaml --config "$recipe/conf/$name.yaml" --data.seed "$seed" \
    --data.train "$lists/pretrain.jsonl" --data.valid "$lists/pretrain_valid.jsonl" \
    --run.out "$run/pretrain"
  seconds=$((SECONDS - began))
  speechssl probe "$run/pretrain/model" --baseline $baseline --label "$label" \
    ${group[@]+"${group[@]}"} --train "$digits" --seed "$seed" --out "$run/digits.json"
  speechssl probe "$run/pretrain/model" --baseline $baseline --label speaker --classifier lda \
    --train "$manifests/spk_train.jsonl" --test "$manifests/spk_test.jsonl" --seed "$seed" \
    --out "$run/speaker.json"
  train --config $recipe/conf/_ctc.yaml --init.from "$run/pretrain/model" --data.seed "$seed" \
    --data.train "$manifests/asr_train_10min.jsonl" --data.valid "$manifests/asr_dev.jsonl" \
    --run.out "$run/ctc"
  speechssl evaluate "$run/ctc/model" "$manifests/asr_test.jsonl" --out "$run/ctc/test"
  result "$name" "$seed" 1 "$seconds"
  if [[ $name == random ]]; then result logmel "$seed" 2 0; fi
}

# result NAME SEED ROW SECONDS: the ROW-th system of the probes, and its recogniser where ROW is 1.
result() {
  local run=$out/runs/$1_$2 cer=null wer=null
  if [[ $1 == logmel ]]; then run=$out/runs/random_$2; fi
  if (($3 == 1)); then
    cer=$(json_number "$run/ctc/test/wer.json" cer) wer=$(json_number "$run/ctc/test/wer.json" wer)
  fi
  tail -n 1 "$run/pretrain/metrics.jsonl" >"$run/last.json"
  {
    printf '{"system": "%s", "seed": %d, "updates": %d, "seconds": %d,\n' "$1" "$2" \
      "$(json_number "$run/last.json" step)" "$4"
    printf ' "digits": %s, "speaker": %s, "cer": %s, "wer": %s,\n' \
      "$(json_column "$run/digits.json" accuracy | sed -n "$3p")" \
      "$(json_column "$run/speaker.json" accuracy | sed -n "$3p")" "$cer" "$wer"
    printf ' "date": "%s", "commit": "%s", "hardware": "%s"}\n' "$(date -u '+%Y-%m-%d')" \
      "$(git rev-parse --short HEAD 2>/dev/null || printf unknown)" "$(hardware)"
  } >"$results/$1_$2.json"
}

# The mean over seeds, percent, the best at naming digits first; a number in brackets says how many
# seeds there are where it is more than one, and is followed by their standard deviation.
results_table() {
  printf '# Results: every objective on one backbone\n\n'
  # shellcheck disable=SC2016 # the backquotes are Markdown's
  printf 'Made from the files of `results/`, each of which says its commit, date and hardware.\n\n'
  printf '| system | seeds | updates | minutes | digits, unseen speaker | speaker | CER, 10 min | WER, 10 min |\n'
  printf '| --- | --- | --- | --- | --- | --- | --- | --- |\n'
  local file
  for file in "$results"/*.json; do
    printf '%s' "$(basename "${file%_*}")"
    local key
    for key in updates seconds digits speaker cer wer; do
      printf ' %s' "$(json_number "$file" $key 2>/dev/null)"
    done
    printf '\n'
  done | LC_ALL=C awk '
    { n[$1]++; updates[$1] = $2; minutes[$1] += $3 / 60
      for (i = 4; i <= 7; i++) if ($i != "-") { seen[$1, i]++; sum[$1, i] += 100 * $i; square[$1, i] += 1e4 * $i * $i } }
    function shown(name, i,   count, mean, spread) {
      count = seen[name, i]
      if (!count) return ""
      mean = sum[name, i] / count
      if (count == 1) return sprintf("%.1f", mean)
      spread = (square[name, i] - count * mean * mean) / (count - 1)
      return sprintf("%.1f ± %.1f", mean, spread > 0 ? sqrt(spread) : 0)
    }
    END { for (name in n)
      printf "%.6f\t| %s | %d | %d | %.0f | %s | %s | %s | %s |\n", sum[name, 4] / seen[name, 4], name, n[name],
        updates[name], minutes[name] / n[name], shown(name, 4), shown(name, 5), shown(name, 6), shown(name, 7) }' \
    | sort -rn | cut -f 2
}

write_results() {
  if ((smoke)); then results_table | tee "$out/RESULTS.md"; else results_table | tee $recipe/RESULTS.md; fi
}

run_stage 0 "manifests" manifest_stage
run_stage 1 "cluster labels" label
settings="$only|$seeds" # of this stage and the next
run_stage 2 "train and measure" measure_all
run_stage 3 "results" write_results
