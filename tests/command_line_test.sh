#!/usr/bin/env bash
# The three binaries as a user runs them: data, a job to its end over a killed
# worker, its checkpoint served and queried, errors as exit codes.
set -u
gla=$PWD/tools/gla
trainer=$PWD/trainer_service/gla_trainer
worker=$PWD/trainer_service/gla_trainer_worker
inference=$PWD/inference_service/gla_inference
cd "$TEST_TMPDIR" || exit 1
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait' EXIT

failures=0
# expect NAME WANT GOT
expect() {
  [ "$2" = "$3" ] && return
  echo "FAILED $1: want $2, got $3"
  failures=$((failures + 1))
}
# exits CODE COMMAND...: also checks that an error is one line on stderr.
exits() {
  local want=$1
  shift
  "$@" >out 2>err
  expect "exit code of $*" "$want" $?
  [ "$want" = 0 ] || [ "$want" = 3 ] || expect "lines of error of $*" 1 "$(wc -l <err)"
}
# start NAME COMMAND...
start() {
  local name=$1
  shift
  "$@" --listen=127.0.0.1:0 --port_file="$name.port" >>"$name.log" 2>&1 &
  pids+=($!)
  until [ -s "$name.port" ]; do
    kill -0 $! || { cat "$name.log"; exit 1; }
    sleep 0.05
  done
}

# within SECONDS COMMAND...: waits until the command succeeds.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || { echo "FAILED in time: $*"; exit 1; }
    sleep 0.05
  done
}
has_checkpoint() { $gla train checkpoints "$1" | grep -q step; }

# Every verb has an example.
$gla help | sed -n 's/^  gla \(.\{22\}\) .*/\1/p' | grep -v '^help' >verbs
expect "verbs found" 1 $(($(wc -l <verbs) > 10))
while read -r verb; do
  # shellcheck disable=SC2086  # a verb may be two words
  expect "examples of $verb" 1 "$($gla help $verb | grep -c '^Example:')"
done <verbs
exits 2 $gla forward --model=dataset

for i in $(seq 400); do echo "line $i is $((i * i % 97))"; done >text
exits 0 $gla data tokenizer text --vocab_size=300 --output=tokenizer
exits 0 $gla data tokenize text --tokenizer=tokenizer --output=pieces
exits 2 $gla data tokenizer text
exits 0 $gla data tokenize text --tokenizer=bytes --output=dataset
exits 6 $gla data tokenize text --tokenizer=bytes --output=dataset
exits 5 $gla data tokenize none --tokenizer=bytes --output=other

start trainer "$trainer" --storage=storage --worker="$worker"
export GLA_TRAINER=127.0.0.1:$(cat trainer.port)
cat >job <<'JOB'
model { hidden_size: 32 num_hidden_layers: 1 num_heads: 2 }
data { dataset: "dataset" sequence_length: 64 batch_sequences: 4 }
total_steps: 4000
checkpoints { every_steps: 100 }
threads: 1
JOB
exits 0 $gla train submit job --validate_only
sed 's/total_steps/totl_steps/' job >bad && exits 2 $gla train submit bad
sed 's/dataset: "dataset"/dataset: "none"/' job >bad && exits 5 $gla train submit bad
sed 's/num_heads: 2/num_heads: 3/' job >bad && exits 2 $gla train submit bad

# A worker that is killed after its first checkpoint costs an attempt, no more.
exits 0 $gla train submit job --id=tiny
exits 6 $gla train submit job --id=tiny
within 60 has_checkpoint tiny
read -r worker_pid < <(cat /proc/"${pids[0]}"/task/*/children)
kill -KILL "${worker_pid:?no worker}"
exits 0 $gla train watch tiny
expect "recovery is told" 1 "$(grep -c RECOVERING out)"
expect "end is told" 1 "$(grep -c SUCCEEDED out)"
$gla train get tiny --output=json >tiny.json
expect "attempts" '"attempt":2' "$(grep -o '"attempt":[0-9]*' tiny.json)"
expect "jobs listed" 1 "$($gla train list --output=json | wc -l)"
exits 0 $gla train logs tiny
exits 5 $gla train get nobody
exits 6 $gla train cancel tiny

sed 's/total_steps: 4000/total_steps: 100000000/' job >long
exits 0 $gla train submit long --id=long
exits 0 $gla train cancel long
exits 3 $gla train watch long

start inference "$inference"
export GLA_INFERENCE=127.0.0.1:$(cat inference.port)
checkpoint=$($gla train checkpoints tiny | tail -n 1 | grep -o '/.*')
exits 5 $gla models load tiny /none
exits 0 $gla models load tiny "$checkpoint"
exits 0 $gla models list
expect "model listed" 1 "$(grep -c models/tiny out)"
exits 0 $gla generate "line 5" --temperature=0 --max_new_tokens=20 --ignore_eos
cp out first
exits 0 $gla generate "line 5" --temperature=0 --max_new_tokens=20 --ignore_eos
expect "same output twice" "$(cat first)" "$(cat out)"
exits 2 $gla generate ""
exits 2 $gla generate "x" --top_p=2
exits 5 $gla generate "x" --model=other
exits 4 $gla generate "x" --server=127.0.0.1:1
exits 2 $gla generate "x" --temprature=1

[ $failures = 0 ] && echo PASSED
exit $((failures > 0))
