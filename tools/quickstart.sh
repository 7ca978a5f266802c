#!/usr/bin/env bash
# From a fresh machine to a trained and served language model: installs, builds,
# prepares the King James Bible, trains on it through the trainer service, and
# streams a completion from the inference service. A second run reuses build and
# data. Everything it makes is in one folder:
#
#   tools/quickstart.sh [RUN_FOLDER]        default: run/quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-run/quickstart}
mkdir -p "$run"
run=$(cd "$run" && pwd)
. tools/services.sh
began=$SECONDS

say "packages"
step tools/setup.sh

say "build"
build //tools:gla //trainer_service:gla_trainer //trainer_service:gla_trainer_worker \
  //inference_service:gla_inference

say "data: the King James Bible, last 5 % held out"
prepare_kjv

say "services"
start_service trainer bazel-bin/trainer_service/gla_trainer --storage="$run/trainer"
export GLA_TRAINER=$address
start_service inference bazel-bin/inference_service/gla_inference
export GLA_INFERENCE=$address
echo "trainer $GLA_TRAINER, inference $GLA_INFERENCE, logs in $run"

say "training"
job=kjv-$(date +%Y%m%d-%H%M%S)
sed "s|DATASET|$run/dataset|" tools/quickstart.textproto >"$run/$job.textproto"
training=$SECONDS
step $gla train submit "$run/$job.textproto" --id="$job" --watch
training=$((SECONDS - training))
$gla train get "$job" --output=json >"$run/$job.json"
checkpoint=$(python3 tools/job_report.py checkpoint "$run/$job.json")

say "a completion from the checkpoint"
step $gla models load kjv "$checkpoint"
step $gla generate "And it came to pass" --model=kjv --temperature=0.7 --top_p=0.95 \
  --seed=1 --max_new_tokens=120

say "report"
python3 tools/job_report.py compression "$run/$job.json" "$run/kjv.txt" "$run/dataset"
minutes() { printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); }
cat <<EOF
time          $(minutes $((SECONDS - began))), training $(minutes $training)
checkpoint    $checkpoint
logs          $run/trainer.log, $run/inference.log

Try next, from this folder:
  bazel-bin/inference_service/gla_inference --listen=127.0.0.1:7071 --model=kjv=$checkpoint &
  bazel-bin/tools/gla generate "Blessed are the" --temperature=0.8
  bazel-bin/tools/gla help
EOF
