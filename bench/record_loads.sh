#!/usr/bin/env bash
# Records where a bundled model's tokens go, by language, as a loads file: the layers are all of it, each sample is one
# language. Text that the model was not trained on, prompts of 256 bytes and 64 more each; a few seconds a language.
#   bench/record_loads.sh models/eight-languages-moe > bench/plan/loads/eight-languages-moe.json
# Needs moe_serve and moe_bench in build/release/bin (MOE_BIN_DIR).
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
bin="${MOE_BIN_DIR:-$root/build/release/bin}"
model="${1:?usage: bench/record_loads.sh MODEL_FOLDER > loads.json}"
folder="$(mktemp -d)"
server=
finish() {
  [[ -z "$server" ]] || kill "$server" 2> /dev/null || true
  rm -r "$folder"
}
trap finish EXIT

traces=()
for language in code dates mirror order record roman sums tale; do
  python3 "$root/bench/corpus/make_corpus.py" text --seed 7 --bytes 65536 --language "$language" > "$folder/text"
  trace="$folder/$language.moetrace"
  "$bin/moe_serve" --model "$model" --trace "$trace" --listen 127.0.0.1:0 --metrics-port 0 \
    --ready-file "$folder/ready" --log-level error &
  server=$!
  until [[ -s "$folder/ready" ]]; do
    kill -0 "$server"
    sleep 0.1
  done
  address="$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["grpc"])' "$folder/ready")"
  "$bin/moe_bench" load --server "$address" --num-requests 48 --concurrency 8 --text "$folder/text" --input-len 256 \
    --output-len 64 --seed 7 > "$folder/report"
  kill "$server"
  wait "$server"
  server=
  rm "$folder/ready"
  traces+=("$trace")
done
python3 "$root/bench/import_loads.py" --samples "${traces[@]}"
