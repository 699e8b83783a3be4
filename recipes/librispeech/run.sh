#!/usr/bin/env bash
# LibriSpeech: pre-train on any subsets, fine-tune on 10 min, 1 h, 10 h or 100 h, decode dev and
# test. Settings are wav2vec 2.0 base as published; they want GPUs.
#   0 download (unless --data)   1 manifests   2 pre-train   3 fine-tune   4 decode   5 RESULTS.md
# --data is the folder that holds LibriSpeech/ and, for 10 min to 10 h, librispeech_finetuning/.
#   SUBSETS   to pre-train on (default: train-clean-100 train-clean-360 train-other-500)
#   LABELS    to fine-tune on (default: 10min 1h 10h 100h)
#   BEAM      width of the prefix beam search besides greedy decoding (default 50)
#   LM        an ARPA file to decode with besides, such as the 4-gram of openslr.org/11
#   INIT      a model folder to start from instead of stage 2; only what LABELS need is then fetched
# A change of these repeats the stages that they decide about.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
recipe=recipes/librispeech
source recipes/_lib/stages.sh
parse_options "$@"
source recipes/_lib/setup.sh
source recipes/_lib/results.sh
manifests=$out/manifests
read -ra subsets <<<"${SUBSETS:-train-clean-100 train-clean-360 train-other-500}"
read -ra labels <<<"${LABELS:-10min 1h 10h 100h}"
evaluation_sets=(dev-clean dev-other test-clean test-other)
corpus=${data:-$out/download}
init=${INIT:-$out/pretrain/model}
lm=${LM:-}
methods=(greedy beam ${lm:+lm})
preset=base
if ((smoke)); then
  preset=tiny
  subsets=("${subsets[0]}")
fi

download() {
  if ((smoke)) || [[ -n $data ]]; then
    printf 'nothing to download\n'
    return
  fi
  local size needed=("${evaluation_sets[@]}")
  if [[ -z ${INIT:-} ]]; then
    needed+=("${subsets[@]}" train-clean-100 librispeech_finetuning) # for any LABELS later
  else
    for size in "${labels[@]}"; do
      if [[ $size == 100h ]]; then needed+=(train-clean-100); else needed+=(librispeech_finetuning); fi
    done
  fi
  python -m data_prep.librispeech download "$corpus" "${needed[@]}"
}

manifest_stage() {
  if ((smoke)) && [[ -z $data ]]; then
    demo_as_librispeech
  else
    python -m data_prep.librispeech prepare "$corpus" "$manifests"
  fi
}

# --smoke without --data: the demo corpus under the names of this one.
demo_as_librispeech() {
  local name
  demo_speech "$manifests"
  (
    cd "$manifests"
    for name in "${subsets[0]}" train-clean-100 finetune-{10min,1h,10h}; do
      cp asr_train.jsonl "$name.jsonl"
    done
    for name in "${evaluation_sets[@]}"; do cp asr_dev.jsonl "$name.jsonl"; done
  )
}

# The manifest that fine-tuning on a label size reads.
label_manifest() {
  case $1 in
    100h) printf '%s' "$manifests/train-clean-100.jsonl" ;;
    *) printf '%s' "$manifests/finetune-$1.jsonl" ;;
  esac
}

# A YAML list of manifests, as --data.train takes it.
manifest_list() {
  local name joined=''
  for name in "$@"; do joined+=${joined:+, }$manifests/$name.jsonl; done
  printf '[%s]' "$joined"
}

pretrain() {
  if [[ -n ${INIT:-} ]]; then
    printf 'starting from %s\n' "$INIT"
    return
  fi
  train --config $recipe/conf/pretrain.yaml --run.out "$out/pretrain" \
    --data.train "$(manifest_list "${subsets[@]}")" --data.valid "$(manifest_list dev-clean)" \
    --backbone.preset "$preset"
}

finetune() {
  local size
  for size in "${labels[@]}"; do
    train --config $recipe/conf/finetune.yaml --config "$recipe/conf/finetune_$size.yaml" \
      --run.out "$out/finetune_$size" --init.from "$init" \
      --data.train "$(label_manifest "$size")" --data.valid "$(manifest_list dev-other)"
  done
}

decode() {
  local size name run
  for size in "${labels[@]}"; do
    run=$out/finetune_$size
    for name in "${evaluation_sets[@]}"; do
      speechssl evaluate "$run/model" "$manifests/$name.jsonl" --out "$run/greedy_$name"
      speechssl evaluate "$run/model" "$manifests/$name.jsonl" --out "$run/beam_$name" \
        --beam "${BEAM:-50}"
    done
    if [[ -n $lm ]]; then language_model "$run"; fi
  done
}

# language_model RUN: the weights that are best on dev-other decode the other sets.
language_model() {
  local name weights
  speechssl evaluate "$1/model" "$manifests/dev-other.jsonl" --out "$1/lm_dev-other" --lm "$lm" \
    --lm-weight 0.5 1 1.5 --word-score -1 0 1
  read -ra weights <<<"$(lm_weights "$1/lm_dev-other/wer.json")"
  for name in "${evaluation_sets[@]}"; do
    if [[ $name == dev-other ]]; then continue; fi
    speechssl evaluate "$1/model" "$manifests/$name.jsonl" --out "$1/lm_$name" --lm "$lm" \
      "${weights[@]}"
  done
}

results_table() {
  local size method name
  printf '# Results: LibriSpeech\n\n'
  provenance
  # shellcheck disable=SC2016 # the backquotes are Markdown's
  printf -- '- pre-training: %s; command: `bash recipes/librispeech/run.sh%s`\n' "${INIT:-${subsets[*]}}" \
    "$( ((!smoke)) || printf ' --smoke')"
  printf '\nWord error rate in percent; greedy and beam without a language model%s.\n\n' \
    "${lm:+, lm with $lm, its weights chosen on dev-other}"
  printf '| labels | decoding | dev-clean | dev-other | test-clean | test-other |\n'
  printf '| --- | --- | --- | --- | --- | --- |\n'
  for size in "${labels[@]}"; do
    for method in "${methods[@]}"; do
      printf '| %s | %s |' "$size" "$method"
      for name in "${evaluation_sets[@]}"; do
        printf ' %s |' "$(percent "$out/finetune_$size/${method}_$name/wer.json" wer)"
      done
      printf '\n'
    done
  done
}

results() {
  local size runs=()
  if [[ -z ${INIT:-} ]]; then
    speechssl report "$out/pretrain" --out "$out/curves_pretrain.png"
  fi
  for size in "${labels[@]}"; do runs+=("$out/finetune_$size"); done
  speechssl report "${runs[@]}" --out "$out/curves_finetune.png" --labels "${labels[@]}"
  results_table | tee "$out/RESULTS.md"
}

# Other LABELS leave the pre-trained model as it is; with INIT they decide what is fetched, too.
settings="SUBSETS=${subsets[*]}"
if [[ -n ${INIT:-} ]]; then settings="INIT=$INIT LABELS=${labels[*]}"; fi
run_stage 0 "download" download
run_stage 1 "manifests" manifest_stage
run_stage 2 "pre-train wav2vec 2.0" pretrain pretrain
settings+=" LABELS=${labels[*]}"
run_stage 3 "fine-tune CTC" finetune finetune "${labels[@]/#/finetune_}"
settings+=" BEAM=${BEAM:-50} LM=$lm"
run_stage 4 "decode" decode
run_stage 5 "results" results
