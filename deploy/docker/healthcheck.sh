#!/usr/bin/env bash
# Whether a cluster that moe_serve runs is well: it has written its ready file, and every rank answers a scrape with its
# own metrics. Needs nothing but bash and coreutils. Usage: healthcheck.sh READY_FILE
set -euo pipefail

ready_file="${1:?usage: healthcheck.sh READY_FILE}"

fail() {
  echo "healthcheck: $*" >&2
  exit 1
}

# The body of http://$1/metrics, through bash's own sockets.
scrape() {
  local host="${1%:*}" port="${1##*:}"
  if [[ "$host" == 0.0.0.0 ]]; then host=127.0.0.1; fi
  exec 3<>"/dev/tcp/$host/$port" || return 1
  printf 'GET /metrics HTTP/1.0\r\nHost: %s\r\n\r\n' "$host" >&3
  timeout 3 cat <&3
}

[[ -r "$ready_file" ]] || fail "$ready_file is not there (yet)"
ready="$(tr -d ' \n' <"$ready_file")"
[[ "$ready" =~ \"metrics\":\[([^]]*)\] ]] || fail "$ready_file has no list \"metrics\""
IFS=, read -r -a addresses <<<"${BASH_REMATCH[1]//\"/}"
((${#addresses[@]} > 0)) || fail "metrics are off: nothing to ask"
for rank in "${!addresses[@]}"; do
  body="$(scrape "${addresses[rank]}" 2>/dev/null)" || fail "rank $rank does not answer on ${addresses[rank]}"
  [[ "$body" == *moe_build_info* ]] || fail "rank $rank answers on ${addresses[rank]} without moe_build_info"
done
