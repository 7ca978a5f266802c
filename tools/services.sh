# For scripts that run services of this project; sourced, not run. Sets up that
# nothing the script starts outlives it, whatever ends it.
#
#   run=FOLDER; . tools/services.sh      FOLDER gets NAME.{log,pid,port}
#   step COMMAND...                      runs a step that a signal can interrupt
#   build TARGET...                      builds with Bazel and ends its server
#   prepare_kjv                          $run/dataset from the King James Bible
#   start_service NAME COMMAND...        sets $address when it listens

services=()  # pids of services
child=       # the step that runs now
gla=bazel-bin/tools/gla

# Ends a process group; those that are gone already are no error.
end_group() { kill -TERM -- "-$1" 2>/dev/null || true; }

stop_all() {
  trap '' INT TERM
  set +e
  [ -n "$child" ] && end_group "$child"
  for pid in ${services[@]+"${services[@]}"}; do end_group "$pid"; done
  wait
  [ -f "$run/building" ] && bazel shutdown >/dev/null 2>&1
  rm -f "$run/building"
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
set -m  # each child leads a process group of its own, with all it starts

say() { printf '\n== %s\n' "$*"; }

step() {
  "$@" </dev/null &
  child=$!
  local code=0
  wait "$child" || code=$?
  child=
  return "$code"
}

build() {
  touch "$run/building"
  step bazel build --show_progress_rate_limit=10 --show_result=0 "$@"
  bazel shutdown >/dev/null 2>&1
  rm -f "$run/building"
}

# The text is held out, tokenized and kept as docs/dataset_format.md says.
prepare_kjv() {
  [ -f "$run/dataset/manifest.json" ] && return
  rm -rf "$run/dataset" "$run/tokenizer"
  bible -f gen1:1-rev22:21 >"$run/kjv.txt"
  step $gla data tokenizer "$run/kjv.txt" --vocab_size=2048 --output="$run/tokenizer"
  step $gla data tokenize "$run/kjv.txt" --tokenizer="$run/tokenizer" --output="$run/dataset"
}

start_service() {
  local name=$1
  shift
  rm -f "$run/$name.port"
  "$@" --listen=127.0.0.1:0 --port_file="$run/$name.port" >>"$run/$name.log" 2>&1 &
  local pid=$!
  services+=("$pid")
  echo "$pid" >"$run/$name.pid"
  until [ -s "$run/$name.port" ]; do
    if ! kill -0 "$pid" 2>/dev/null; then
      echo "the $name service did not start; its log ends:" >&2
      tail -n 5 "$run/$name.log" >&2
      exit 1
    fi
    sleep 0.1
  done
  address=127.0.0.1:$(cat "$run/$name.port")
}
