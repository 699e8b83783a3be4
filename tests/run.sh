#!/usr/bin/env bash
# The tests. Options that it does not know go to pytest.
#   bash tests/run.sh                 the quick ones: unit, contracts, house, properties
#   bash tests/run.sh --all           and those marked slow, dist, interop, and gpu where there is one
#   bash tests/run.sh -k planner -x   pytest's own options
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

everything=0 options=()
for word in "$@"; do
  case $word in
    --all) everything=1 ;;
    -h | --help)
      sed -n '2,/^set /{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) options+=("$word") ;;
  esac
done

source recipes/_lib/setup.sh
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

status=0
if ((everything)); then
  gpu='not gpu'
  python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' && gpu='gpu or not gpu'
  python -m pytest -n 2 -m "not dist and ($gpu)" ${options[@]+"${options[@]}"} || status=$?
  # Those that start processes of their own run one after another.
  python -m pytest -n 0 -m 'dist' ${options[@]+"${options[@]}"} || status=$?
else
  python -m pytest -n 2 ${options[@]+"${options[@]}"} || status=$?
fi
exit "$status"
