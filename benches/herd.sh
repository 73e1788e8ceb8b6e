#!/usr/bin/env bash
# `make bench-herd`: a service that fails for a minute and comes back bearing 500 requests a second, and what txrelay sends it;
# a steady 200/s with an outage of 30 s; throughput beside poison. Its own PostgreSQL, Kafka and HTTP service. Prints a Markdown
# table, fails when a goal is missed, and writes an SVG of arrivals over time.
#   --quick              one kind of outage, of 20 s, and no poison
#   HERD_KINDS="503 refused hang 429 500 401"   HERD_LATENCIES="20 1"   HERD_SVG=docs/herd.svg   HERD_AT_ONCE=1
#   HERD_PLAIN=0 HERD_STEADY=0 HERD_POISON=0   without plain backoff, the steady load or poison; HERD_KINDS="" without outages
#   HERD_POISON_COUNT=60000 (half of it at 20 ms)  HERD_POISON_RUNS=4 (of each kind)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
here=$root/tests/bed
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"

CARGO_TARGET_DIR=$(cargo_target)
export CARGO_TARGET_DIR
if [ "${1:-}" = --quick ]; then
  export HERD_KINDS=${HERD_KINDS:-503} HERD_LATENCIES=${HERD_LATENCIES:-20} HERD_OUTAGE=20s HERD_POISON=0
  shift
fi
if [ "${1:-}" != inside ]; then
  "$here/setup.sh"
  # With fail points, for plain backoff is none of a user's settings.
  (cd "$root" && cargo build --release --features bed,failpoints)
  exec "$here/with-bed.sh" "$0" inside
fi

bed=$CARGO_TARGET_DIR/release/bed
out=${HERD_OUT:-$TXRELAY_TEST_DIR/runs.jsonl}
outage=${HERD_OUTAGE:-60s}
jobs=()
herd() { # NAME KIND MORE...
  local name=$1 kind=$2
  shift 2
  say "$name ($kind)"
  "$bed" herd run --brokers "$TXRELAY_TEST_KAFKA" --dsn "$TXRELAY_TEST_PG" --txrelay "$CARGO_TARGET_DIR/release/txrelay" \
    --dir "$TXRELAY_TEST_DIR" --name "$name" --kind "$kind" --out "$out" "$@" >&2 &
  jobs+=($!)
  [ "${#jobs[@]}" -lt "${HERD_AT_ONCE:-1}" ] || wait_for_all
}
wait_for_all() {
  local job
  for job in "${jobs[@]}"; do wait "$job"; done
  jobs=()
}

for latency in ${HERD_LATENCIES:-20 1}; do
  for kind in ${HERD_KINDS-503 refused hang 429 500 401}; do
    herd "herd-$kind-$latency" "$kind" --outage "$outage" --latency-ms "$latency"
  done
done
[ "${HERD_PLAIN:-1}" = 0 ] || herd herd-plain 503 --outage "$outage" --plain
[ "${HERD_STEADY:-1}" = 0 ] || herd steady 503 --count 0 --before 10s --outage 30s --after 30s --capacity 5000 --latency-ms 1
wait_for_all
if [ "${HERD_POISON:-1}" != 0 ]; then
  # One at a time, there and back: these are about throughput. Where workers are the limit, at 20 ms, runs of a kind are alike; a hung
  # request holds a worker for its 2 s, so that the share of workers is what it costs there, and the machine is the limit for that kind.
  export HERD_AT_ONCE=1
  poison() { # KIND LATENCY_MS N
    local rules count=${HERD_POISON_COUNT:-60000}
    [ "$2" != 20 ] || count=$((count / 2)) # they last for about as long
    case $1 in
      none) rules='[]' ;;
      400) rules='[{"status":400,"share":0.001,"sticky":true}]' ;;
      500) rules='[{"status":500,"share":0.01,"sticky":true}]' ;;
      hang) rules='[{"action":"hang","share":0.001,"sticky":true}]' ;;
    esac
    herd "poison-$1-$2-$3" none --count "$count" --rate 0 --outage 0s --after 12s --capacity 0 --latency-ms "$2" --rules "$rules"
  }
  for n in $(seq 1 "${HERD_POISON_RUNS:-4}"); do
    order=("none 20" "400 20" "500 20" "none 5" "hang 5")
    [ $((n % 2)) = 1 ] || order=("hang 5" "none 5" "500 20" "400 20" "none 20")
    for one in "${order[@]}"; do poison "${one% *}" "${one#* }" "$n"; done
  done
fi
[ "${HERD_PLAIN:-1}" = 0 ] || "$bed" herd chart "$out" "${HERD_SVG:-$root/docs/herd.svg}"
"$bed" herd table "$out"
