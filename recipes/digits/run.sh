#!/usr/bin/env bash
# Free Spoken Digit Dataset, leave one speaker out: pre-train on connected digits of the others,
# then ask a linear probe which digit the held-out speaker says. Beside log-mel and random weights.
#   0 manifests     1 pre-train one model a fold     2 probe     3 RESULTS.md and curves
# --data is the folder that holds fsdd/ (manifest.jsonl and audio) and connected/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
recipe=recipes/digits
source recipes/_lib/stages.sh
parse_options "$@"
source recipes/_lib/setup.sh
source recipes/_lib/results.sh
manifests=$out/manifests
