# Sourced by recipes and tests. Makes .venv with everything in it, once, and puts it first in PATH.
# A second call is instant: a stamp in .venv holds the checksum of pyproject.toml and constraints.txt.
#   SPEECHSSL_VENV   use this environment instead of .venv, and install nothing into it
#   PYTHON           the interpreter to build .venv with (3.11 or newer)
set -euo pipefail
repo_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export DS_BUILD_OPS=0                    # DeepSpeed compiles nothing at installation
export PIP_DISABLE_PIP_VERSION_CHECK=1
export TOKENIZERS_PARALLELISM=false

setup_fail() {
  printf 'set-up: %s\n' "$@" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null 2>&1 \
      && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  setup_fail "no Python 3.11 or newer found (looked for: ${PYTHON:-} python3.11 python3.12 python3.13 python3)" \
    "install one, or name it: PYTHON=/path/to/python3.11 bash $0"
}

make_venv() {
  local venv=$1 python
  python=$(find_python)
  printf 'set-up: making %s with %s (%s)\n' "$venv" "$python" "$("$python" -V)" >&2
  "$python" -m venv --clear "$venv" \
    || setup_fail "'$python -m venv' failed" "on Debian and Ubuntu: apt-get install python3-venv"
}

install_all() {
  local venv=$1 log=$1/install.log
  printf 'set-up: installing the locked packages; the first time takes minutes (log: %s)\n' "$log" >&2
  if ! (cd "$repo_root" && "$venv/bin/python" -m pip install --no-input -c constraints.txt \
    -e '.[dev,demo]' </dev/null >"$log" 2>&1); then
    tail -n 20 "$log" >&2
    setup_fail "installation failed; the last lines of $log stand above" \
      "needs pip's index in reach and about 8 GB of disk; run the same command again to go on"
  fi
}

setup_environment() {
  local venv=$repo_root/.venv want stamp
  if [[ -n ${SPEECHSSL_VENV:-} ]]; then
    [[ -x $SPEECHSSL_VENV/bin/python ]] \
      || setup_fail "SPEECHSSL_VENV=$SPEECHSSL_VENV has no bin/python" "unset it to let .venv be made"
    venv=$(cd "$SPEECHSSL_VENV" && pwd)
    export PYTHONPATH=$repo_root${PYTHONPATH:+:$PYTHONPATH}
  else
    want=$(cat "$repo_root/pyproject.toml" "$repo_root/constraints.txt" | cksum | tr ' ' '-')-$repo_root
    stamp=$venv/.installed
    if [[ ! -f $stamp || $(<"$stamp") != "$want" ]]; then
      mkdir -p "$venv"
      # Two commands started at once: the second waits for the first, then finds the stamp.
      if command -v flock >/dev/null 2>&1; then
        exec 9>"$repo_root/.venv.lock"
        flock 9
      fi
      if [[ ! -f $stamp || $(<"$stamp") != "$want" ]]; then
        rm -f "$stamp"
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv "$venv"
        install_all "$venv"
        printf '%s\n' "$want" >"$stamp"
      fi
      if command -v flock >/dev/null 2>&1; then exec 9>&-; fi
    fi
  fi
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

setup_environment
