# Sourced by every run.sh: options, stages with times and logs, and the launcher of training runs.
# A recipe sets `recipe` (its folder) and, where it has trainings that can run at once,
# `takes_jobs=1`, then calls
#   parse_options "$@"
#   run_stage 0 "manifests" some_function CONFIG...     for each stage, in order
# with the configs in conf/ that the stage reads, and uses $out, $data, $smoke and `train` inside its
# functions. Whatever else decides about the stages from here on is added to $settings.
# No Python in recipes.
set -euo pipefail
: "${recipe:?set recipe to the folder of the recipe before sourcing this file}"

stage=0 stop_stage=99 nproc='' jobs='' smoke=0 data='' out='' settings=''

usage() {
  # The comment at the top of the recipe, then the options all recipes share.
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$recipe/run.sh"
  cat <<'TEXT'

Options:
  --stage N        first stage to run; a finished one runs again, and so do those after it (default 0)
  --stop-stage N   last stage to run
  --nproc N        training processes on this machine (default: one for each GPU, else 1)
TEXT
  [[ -z ${takes_jobs:-} ]] || cat <<'TEXT'
  --jobs N         trainings that do not need each other, run at once on the cores (default: 2 where
                   there is no GPU and --nproc is 1, else 1)
TEXT
  cat <<'TEXT'
  --smoke          20 steps on a small demo corpus: does it all run?
  --data DIR       where the corpus lies
  --out DIR        where everything goes (default exp/RECIPE, or exp/RECIPE-smoke)
  --help           this text
Finished stages are skipped, and an interrupted training run goes on where it stood. A stage whose
configs or settings changed runs again, with all that follow. What runs again trains from the start:
the earlier run folders are moved to replaced/ below --out, one generation of them.
TEXT
}

option_error() {
  printf '%s: %s\n' "$recipe/run.sh" "$1" >&2
  printf 'see: bash %s --help\n' "$recipe/run.sh" >&2
  exit 2
}

parse_options() {
  local name value
  while (($#)); do
    name=${1%%=*}
    case $name in
      --help | -h)
        usage
        exit 0
        ;;
      --smoke) smoke=1 && shift && continue ;;
      --stage | --stop-stage | --stop_stage | --nproc | --jobs | --data | --out) ;;
      *) option_error "unknown option '$1'" ;;
    esac
    if [[ $1 == *=* ]]; then
      value=${1#*=}
    else
      (($# > 1)) || option_error "$1 expects a value"
      value=$2
      shift
    fi
    shift
    case $name in
      --data) data=$value && continue ;;
      --out) out=$value && continue ;;
    esac
    [[ $value =~ ^[0-9]+$ ]] || option_error "$name expects a number, got '$value'"
    case $name in
      --stage) stage=$value first_asked=1 ;;
      --stop-stage | --stop_stage) stop_stage=$value ;;
      --nproc) ((value > 0)) || option_error "--nproc expects at least 1" && nproc=$value ;;
      --jobs)
        [[ -n ${takes_jobs:-} ]] || option_error "--jobs: this recipe has nothing to run at once"
        ((value > 0)) || option_error "--jobs expects at least 1" && jobs=$value
        ;;
    esac
  done
  if [[ -z $out ]]; then
    out=exp/${recipe#recipes/}
    ((!smoke)) || out+=-smoke
  fi
  mkdir -p "$out/logs" "$out/.done" "$out/.started"
  choose_processes
}

choose_processes() {
  local gpus=0 cores
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cE '^([0-9]|GPU-|MIG-)' || true)
  elif command -v nvidia-smi >/dev/null 2>&1; then
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
  fi
  cores=$(getconf _NPROCESSORS_ONLN)
  if [[ -z $nproc ]]; then nproc=$((gpus > 0 ? gpus : 1)); fi
  # A small network does not fill two cores: two trainings of one thread each get more done.
  if [[ -z ${takes_jobs:-} ]]; then jobs=1; fi
  if [[ -z $jobs ]]; then jobs=$((gpus == 0 && nproc == 1 && cores > 1 ? 2 : 1)); fi
  if [[ -z ${OMP_NUM_THREADS:-} ]]; then
    export OMP_NUM_THREADS=$((cores > nproc ? cores / nproc : 1))
  fi
}

# checksum CONFIG...: what a stage depends on; when it changes, the stage runs again.
checksum() {
  local name
  {
    cat "$recipe/run.sh"
    for name in "$@"; do cat "$recipe/conf/$name.yaml"; done
    printf '%s|%s|%s\n' "$smoke" "$data" "$settings"
  } | cksum
}

show_seconds() {
  printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
}

# run_stage NUMBER TITLE FUNCTION CONFIG...: skipped when out of range, or done before with the same
# checksum. `started` holds the checksum and then the run folders that belong to it; it outlives an
# interruption, so that those are resumed and all others replaced.
run_stage() {
  local number=$1 title=$2 body=$3 log mark started sum code began=$SECONDS
  ((number >= stage && number <= stop_stage)) || return 0
  shift 3
  sum=$(checksum "$@")
  log=$out/logs/stage_$number.log mark=$out/.done/stage_$number started=$out/.started/stage_$number
  if [[ -z ${first_asked:-} && -f $mark && $(<"$mark") == "$sum" ]]; then
    printf 'Stage %d: %s: done before, skipped\n' "$number" "$title"
    return 0
  fi
  if [[ -f $mark || ! -f $started || $(head -n 1 "$started") != "$sum" ]]; then
    printf '%s\n' "$sum" >"$started"
  fi
  forget_marks_from "$number"
  printf '\nStage %d: %s (%s; log: %s)\n' "$number" "$title" "$(date '+%H:%M:%S')" "$log"
  # A subshell of its own, outside any condition, so that `set -e` holds inside the function.
  # On a terminal stderr stays one, for the progress bars; else it goes into the log too.
  set +e
  if [[ -t 2 ]]; then
    (
      set -euo pipefail
      "$body"
    ) | tee "$log"
    code=${PIPESTATUS[0]}
  else
    (
      set -euo pipefail
      "$body"
    ) 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
  fi
  set -e
  if ((code)); then
    printf 'Stage %d: %s: FAILED with exit code %d after %s; log: %s\n' \
      "$number" "$title" "$code" "$(show_seconds $((SECONDS - began)))" "$log" >&2
    printf 'To go on from here: bash %s --stage %d --out %s%s%s\n' "$recipe/run.sh" "$number" \
      "$out" "${data:+ --data $data}" "$( ((!smoke)) || printf ' --smoke')" >&2
    exit "$code"
  fi
  printf '%s\n' "$sum" >"$mark"
  printf 'Stage %d: %s: done in %s\n' "$number" "$title" "$(show_seconds $((SECONDS - began)))"
}

# forget_marks_from NUMBER: this stage is not finished, and those after it not even started.
forget_marks_from() {
  local mark
  for mark in "$out"/.done/stage_* "$out"/.started/stage_*; do
    [[ -f $mark ]] || continue
    if ((${mark##*_} > $1)); then rm -f "$mark"; fi
  done
  rm -f "$out/.done/stage_$1"
}

# `speechssl` itself, told to the user first.
speechssl() {
  printf '+ speechssl %s\n' "$*"
  python -m speechssl "$@"
}

# `speechssl train` on --nproc processes; --smoke shortens whatever the configs say.
train() {
  local words=(train "$@")
  own_run_folder "$@"
  if ((smoke)); then
    words+=(--optim.steps 20 --optim.warmup_steps 2 --optim.hold_steps 0
      --run.log_every_steps 5 --run.valid_every_steps 10 --run.save_every_steps 20
      --data.min_sec 0.5 --data.max_sec 4 --data.batch_sec 12 --data.update_sec 12
      --data.workers 0 --engine.precision fp32)
  fi
  if ((nproc > 1)); then
    printf '+ torchrun --standalone --nproc_per_node %d -m speechssl %s\n' "$nproc" "${words[*]}"
    torchrun --standalone --nproc_per_node "$nproc" -m speechssl "${words[@]}"
  else
    speechssl "${words[@]}"
  fi
}

# at_once NAME COMMAND...: run COMMAND beside others, at most --jobs of them, its lines headed by
# NAME. A stage that starts any ends with `all_done`, which fails if one of them did.
running=() job_failed=0
at_once() {
  local name=$1
  shift
  if ((jobs == 1)); then
    "$@"
    return
  fi
  if ((${#running[@]} >= jobs)); then join_first; fi
  (
    set -euo pipefail
    export OMP_NUM_THREADS=$((OMP_NUM_THREADS > jobs ? OMP_NUM_THREADS / jobs : 1))
    "$@" 2>&1 | sed -u "s|^|[$name] |"
  ) &
  running+=($!)
}

join_first() {
  wait "${running[0]}" || job_failed=1
  running=("${running[@]:1}")
}

all_done() {
  while ((${#running[@]})); do join_first; done
  ((!job_failed)) || { printf 'a job of this stage failed; its lines stand above\n' >&2 && return 1; }
}

# own_run_folder WORD...: move the folder of --run.out aside unless this stage, as it is, began it.
own_run_folder() {
  local folder=''
  while (($#)); do
    case $1 in
      --run.out) folder=$2 ;;
      --run.out=*) folder=${1#*=} ;;
    esac
    shift
  done
  if grep -qxF -- "$folder" "$started"; then return; fi
  if [[ -e $folder ]]; then
    local aside=$out/replaced/${folder#"$out"/}
    printf 'the earlier %s is now %s\n' "$folder" "$aside"
    mkdir -p "$(dirname "$aside")"
    rm -rf "$aside"
    mv "$folder" "$aside"
  fi
  printf '%s\n' "$folder" >>"$started"
}

# demo_speech DIR: synthetic voices and their manifests; a few minutes of them under --smoke.
demo_speech() {
  local size=()
  if ((smoke)); then size=(--speakers 8 --utterances 10); fi
  python -m data_prep.demo "$1" ${size[@]+"${size[@]}"}
}

# need_data WHAT: stop with a hint where --data is missing.
need_data() {
  [[ -n $data ]] || option_error "--data DIR is needed: $1"
  [[ -d $data ]] || option_error "--data $data: no such folder; expected $1"
}
