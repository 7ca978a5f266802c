#!/usr/bin/env bash
# Builds everything, runs every test, and ends with one line:
#   N passed, N failed, N skipped
# where N counts test cases. Fails when a test or any part of the build does.
#
# With a CUDA toolkit it also builds the GPU code and runs the GPU tests, which
# skip themselves where there is no GPU. BAZEL can name another Bazel command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh

read -ra bazel <<< "${BAZEL:-bazel}"
events=$(mktemp -d)
trap 'rm -rf "$events"' EXIT

status=0
"${bazel[@]}" test --keep_going --build_event_json_file="$events/cpu" //... ||
  status=$?

if [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
  # Only what is tagged: the rest was built above and is the same.
  "${bazel[@]}" test --config=cuda --keep_going \
    --build_tag_filters=cuda,gpu --test_tag_filters=gpu \
    --build_event_json_file="$events/gpu" //... || {
    cuda_status=$?
    # 4: all was built and there are no such tests.
    ((cuda_status == 4)) || status=$cuda_status
  }
fi

python3 tools/bazel/count_tests.py --bazel_status="$status" "$events"/*
