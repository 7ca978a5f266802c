#!/usr/bin/env bash
# The Python client of README.md, as it stands there, against a served model.
set -eu
readme=$PWD/README.md
proto=$PWD/proto
inference=$PWD/inference_service/gla_inference
golden=$PWD/tests/goldens/tiny
cd "$TEST_TMPDIR"

mkdir model
cp "$golden/config.json" "$golden/model.safetensors" model/
echo '{"tokenizer_class": "ByteTokenizer"}' >model/tokenizer_config.json
"$inference" --listen=127.0.0.1:0 --port_file=port --model=book=model 2>log &
trap 'kill %1; wait' EXIT
until [ -s port ]; do
  kill -0 %1 || { cat log; exit 1; }
  sleep 0.05
done

protoc -I"$proto" --python_out=. "$proto/gla/inference/v1/inference.proto"
sed -n '/^```python$/,/^```$/{/^```/!p}' "$readme" | sed "s/7071/$(cat port)/" >client.py
/usr/bin/python3 client.py >text
[ "$(wc -c <text)" -gt 50 ] || { echo "too little text:"; cat text; exit 1; }
