#!/usr/bin/env bash
# What the forget gate is worth: trains the quickstart's model twice on the same
# data, steps and seed, as it is and with every gate fixed at one
# (use_forget_gate: false), and prints validation bits per byte of both.
#
#   tools/gate_worth.sh [RUN_FOLDER]        default: run/quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-run/quickstart}
mkdir -p "$run"
run=$(cd "$run" && pwd)
. tools/services.sh

step tools/setup.sh
build //tools:gla //trainer_service:gla_trainer //trainer_service:gla_trainer_worker
prepare_kjv
start_service trainer bazel-bin/trainer_service/gla_trainer --storage="$run/trainer"
export GLA_TRAINER=$address

table=
for gate in learned one; do
  job=gate-$gate-$(date +%Y%m%d-%H%M%S)
  key=$([ $gate = learned ] && echo true || echo false)
  sed "s|DATASET|$run/dataset|; s|^model {|model {\n  use_forget_gate: $key|" \
    tools/quickstart.textproto >"$run/$job.textproto"
  step $gla train submit "$run/$job.textproto" --id="$job" --watch
  $gla train get "$job" --output=json >"$run/$job.json"
  table+="$gate  $(python3 tools/job_report.py bits "$run/$job.json")"$'\n'
done
printf '\nforget gate  validation bits per byte\n%s' "$table"
