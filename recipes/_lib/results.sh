# Sourced by recipes that write tables: reads numbers out of the JSON files of `speechssl evaluate`.

# json_number FILE KEY [N]: the N-th number (default 1st) after the first KEY, or `-`.
json_number() {
  local file=$1 key=$2 position=${3:-1} found=''
  if [[ -f $file ]]; then
    found=$(tr -d '\n ' <"$file" | awk -v key="\"$key\":" -v position="$position" '
      { at = index($0, key)
        if (!at) exit
        split(substr($0, at + length(key)), parts, /[][,{}]/)
        for (i = 1; seen < position; i++) if (parts[i] != "") seen++
        if (parts[i - 1] ~ /^-?[0-9]/) printf "%s", parts[i - 1] }')
  fi
  if [[ -z $found ]]; then printf '%s: no number "%s"\n' "$file" "$key" >&2; fi
  printf '%s' "${found:--}"
}

# json_column FILE KEY: the number after every KEY, one a line: a column of a list of rows.
json_column() {
  tr -d '\n ' <"$1" | awk -v key="\"$2\":" '
    { count = split($0, parts, key)
      for (i = 2; i <= count; i++) { sub(/[],}].*/, "", parts[i]); print parts[i] } }'
}

# percent FILE KEY [N]: the same as a percentage with one decimal.
percent() {
  local value
  value=$(json_number "$@")
  if [[ $value == - ]]; then
    printf '%s' -
  else
    LC_ALL=C awk -v value="$value" 'BEGIN { printf "%.1f", 100 * value }'
  fi
}

# interval FILE: the 95 % interval of a word error rate, in percent.
interval() {
  printf '%s to %s' "$(percent "$1" wer_ci95 1)" "$(percent "$1" wer_ci95 2)"
}

# lm_weights FILE: the options that decode as the best row of a grid did.
lm_weights() {
  printf -- '--lm-weight %s --word-score %s' "$(json_number "$1" lm_weight)" \
    "$(json_number "$1" word_score)"
}

# Where a table comes from: date, commit, machine, versions.
provenance() {
  local commit
  commit=$(git rev-parse --short HEAD 2>/dev/null || printf 'no git')
  if [[ -n $(git status --porcelain --untracked-files=no 2>/dev/null) ]]; then commit+=', changed'; fi
  printf -- '- date: %s; commit: %s\n' "$(date -u '+%Y-%m-%d')" "$commit"
  printf -- '- hardware: %s, %s processes x %s threads\n' "$(hardware)" "${nproc:-1}" "$OMP_NUM_THREADS"
  printf -- '- versions: %s\n' "$(grep -E '^(torch|torchaudio|deepspeed)==' constraints.txt | tr '\n' ' ')"
}

hardware() {
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi --list-gpus >/dev/null 2>&1; then
    nvidia-smi --query-gpu=name --format=csv,noheader | sort | uniq -c | sed 's/^ *//'
  else
    printf '%s CPU cores' "$(getconf _NPROCESSORS_ONLN)"
  fi
}
