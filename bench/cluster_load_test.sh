#!/bin/bash
# Starts `mpirun -n N moe_serve` and a real Prometheus that scrapes all ranks, drives load, and sets what the client
# counted beside what the servers counted. Writes one result folder. Exit code: 0 every request completed and all counts
# agree, 1 not so, 2 bad usage.
set -euo pipefail

usage() {
  cat <<'END'
Usage: bench/cluster_load_test.sh [FLAG VALUE]…
  --ranks N             processes: one router and N - 1 workers, or 1 for both in one (8)
  --model DIR           (models/eight-languages-moe)
  --serve-args "…"      more flags for moe_serve
  --load-args "…"       flags for moe_bench load
                        (--num-requests 200 --request-rate 40 --warmup 8 --input-len 16:128 --output-len 16:48
                         --text models/held-out.txt)
  --output DIR          result folder, must not exist (results/cluster-<time>)
  --server-binary DIR   where moe_serve is (build/release/bin)
  --bench-binary DIR    where moe_bench is (as --server-binary)
  --ready-timeout S     seconds for the cluster to start (60)
  --settle-timeout S    seconds after the load for all counts to agree (15)
Examples:
  bench/cluster_load_test.sh
  bench/cluster_load_test.sh --ranks 3 --load-args "--concurrency 16 --num-requests 500"
The folder then holds result.json, table.txt, load.json, metrics.txt (all ranks' metrics at the end), before.txt,
ready.json, server.log, prometheus.yml, prometheus.log and prometheus/ (its data).
END
}

bad_usage() {
  echo "cluster_load_test.sh: $*" >&2
  exit 2
}

ranks=8
model=models/eight-languages-moe
serve_args=""
load_args="--num-requests 200 --request-rate 40 --warmup 8 --input-len 16:128 --output-len 16:48 --text models/held-out.txt"
output=""
server_binary=build/release/bin
bench_binary=""
ready_timeout=60
settle_timeout=15
while (($# > 0)); do
  case "$1" in
    --help | -h) usage; exit 0 ;;
    --ranks | --model | --serve-args | --load-args | --output | --server-binary | --bench-binary | --ready-timeout | --settle-timeout)
      (($# > 1)) || bad_usage "$1 needs a value."
      name="${1#--}"
      printf -v "${name//-/_}" '%s' "$2"
      shift 2 ;;
    *) bad_usage "unknown flag \"$1\" (--help shows all)." ;;
  esac
done
for name in ranks ready_timeout settle_timeout; do
  [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || bad_usage "--${name//_/-} \"${!name}\" is not a number of at least 1."
done

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh" # from here on, relative paths are from the repository's root
bench_binary="${bench_binary:-$server_binary}"
output="${output:-results/cluster-$(date +%Y%m%d-%H%M%S)}"
[[ -x "$server_binary/moe_serve" ]] || bad_usage "$server_binary/moe_serve is not there (cmake --preset release && cmake --build --preset release)."
[[ -x "$bench_binary/moe_bench" ]] || bad_usage "$bench_binary/moe_bench is not there."
[[ ! -e "$output" ]] || bad_usage "--output $output exists already."
command -v prometheus > /dev/null || fail "prometheus is not installed (scripts/setup.sh installs it)."
mkdir -p "$output"
output="$(cd "$output" && pwd)"

server=""     # process of mpirun
prometheus="" # process of Prometheus

# stop PROCESS: asks it to end, insists after 10 s.
stop() {
  [[ -n "$1" ]] || return 0
  kill -TERM "$1" 2> /dev/null || true
  for ((i = 0; i < 100; ++i)); do
    kill -0 "$1" 2> /dev/null || break
    sleep 0.1
  done
  kill -KILL "$1" 2> /dev/null || true
  wait "$1" 2> /dev/null || true
}
trap 'stop "$prometheus"; stop "$server"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# wait_for WHAT LOG PROCESS COMMAND…: until the command succeeds, while the process lives and there is time.
wait_for() {
  local what="$1" log="$2" process="$3" end=$((SECONDS + ready_timeout))
  shift 3
  until "$@"; do
    kill -0 "$process" 2> /dev/null || { tail -n 20 "$log" >&2; fail "$what ended before it was ready (log: $log)."; }
    ((SECONDS < end)) || { tail -n 20 "$log" >&2; fail "$what was not ready after $ready_timeout s (log: $log)."; }
    sleep 0.1
  done
}

echo "== server: $ranks ranks of $model"
# shellcheck disable=SC2086 # the extra flags are meant to be split
"${MPIRUN[@]}" -n "$ranks" "$server_binary/moe_serve" --model "$model" --listen 127.0.0.1:0 --metrics-port auto \
  --ready-file "$output/ready.json" $serve_args > "$output/server.log" 2>&1 &
server=$!
wait_for "the server" "$output/server.log" "$server" test -s "$output/ready.json"
from_ready() { "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$output/ready.json" "$1"; }
address="$(from_ready grpc)"
router="$(from_ready pid)"

echo "== Prometheus"
"$PYTHON" deploy/prometheus/generate.py --ready-file "$output/ready.json" --scrape-interval 1s --output "$output/prometheus.yml"
prometheus --config.file="$output/prometheus.yml" --storage.tsdb.path="$output/prometheus" \
  --web.listen-address=127.0.0.1:0 > "$output/prometheus.log" 2>&1 &
prometheus=$!
# It prints the port that it got.
prometheus_url() { sed -n 's|.*msg="Listening on" address=\([0-9.:]*\).*|http://\1|p' "$output/prometheus.log" | head -n 1; }
prometheus_ready() {
  local url
  url="$(prometheus_url)"
  [[ -n "$url" ]] && "$PYTHON" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$url/-/ready" 2> /dev/null
}
wait_for Prometheus "$output/prometheus.log" "$prometheus" prometheus_ready
url="$(prometheus_url)"

echo "== load: $address"
"$PYTHON" -B bench/compare_counts.py scrape --ready-file "$output/ready.json" --prometheus "$url" \
  --output "$output/before.txt"
status=0
# shellcheck disable=SC2086
"$bench_binary/moe_bench" load --server "$address" $load_args --output "$output/load.json" || status=$?
[[ -s "$output/load.json" ]] || fail "moe_bench load ended with $status and without a result."

echo "== counts"
"$PYTHON" -B bench/compare_counts.py compare --ready-file "$output/ready.json" --before "$output/before.txt" \
  --prometheus "$url" --client "$output/load.json" --output "$output" \
  --timeout "$settle_timeout" || status=1

echo "== stop"
kill -TERM "$router" # the router drains, and tells the workers
for ((i = 0; i < 600; ++i)); do # twice the default of --drain-timeout
  kill -0 "$server" 2> /dev/null || break
  sleep 0.1
done
! kill -0 "$server" 2> /dev/null || fail "the server still ran 60 s after SIGTERM to rank 0 (log: $output/server.log)."
server_status=0
wait "$server" || server_status=$?
server=""
if ((server_status != 0)); then
  tail -n 20 "$output/server.log" >&2
  fail "the server ended with $server_status after SIGTERM to rank 0, 0 was expected (log: $output/server.log)."
fi
echo "results: $output"
exit "$((status == 0 ? 0 : 1))"
