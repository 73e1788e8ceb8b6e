#!/usr/bin/env bash
# `make bench`: what one delivery costs, on this machine, with its own PostgreSQL, Kafka and HTTP service. Prints a Markdown
# table of medians and ranges. Times of one machine say little; the ratios of one run do.
#   BENCH_RECORDS=60000  BENCH_RUNS=3  BENCH_WORKERS=64  BENCH_BYTES=1000
#   BENCH_RATE=R         records per second instead of a burst, for p50 and p99
#   BENCH_DELAY_MS=N     the service takes so long to answer
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
here=$root/tests/bed
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"
# shellcheck source=benches/common.sh
. "$root/benches/common.sh"

CARGO_TARGET_DIR=$(cargo_target)
export CARGO_TARGET_DIR
if [ "${1:-}" != inside ]; then
  "$here/setup.sh"
  (cd "$root" && cargo build --release --features bed)
  exec "$here/with-bed.sh" "$0" inside
fi

bed=$CARGO_TARGET_DIR/release/bed
dir=$TXRELAY_TEST_DIR
runs=${BENCH_RUNS:-3}
eval "$("$here/pg.sh" env "$TXRELAY_TEST_PG_DIR")"
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  trap '' INT TERM HUP
  end "$dir/txrelay.pid" TERM 20
  end "$dir/ledger.pid" TERM 2
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

start_ledger
"$bed" http PUT "$ledger/_/behave" "{\"delay_ms\":${BENCH_DELAY_MS:-0}}" >/dev/null

one_run() { # N
  local topic=bench-$1 port
  pipeline "$topic"
  # Every run has a daemon, a topic and a schema of its own, so that the peak of RSS is that run's.
  spawn "$dir/txrelay.pid" "$dir/txrelay.log" env "STATE_DIRECTORY=$dir/$topic.state" \
    "$CARGO_TARGET_DIR/release/txrelay" -c "$dir/$topic.toml" run
  local pid
  pid=$(pid_of "$dir/txrelay.pid") || { tail -n 20 "$dir/txrelay.log" >&2; die "txrelay did not start"; }
  if ! "$bed" http GET "http://127.0.0.1:$port/readyz" --retry 30s >/dev/null \
    || ! "$bed" measure run --brokers "$TXRELAY_TEST_KAFKA" --topic "$topic" --count "${BENCH_RECORDS:-60000}" \
      --bytes "${BENCH_BYTES:-1000}" ${BENCH_RATE:+--rate "$BENCH_RATE"} --seed "$1" --prefix "run$1" --ledger-url "$ledger" \
      --dsn "$TXRELAY_TEST_PG" --daemon "$pid" --postgres "$PG_PID" --out "$dir/runs.jsonl" >&2; then
    tail -n 20 "$dir/txrelay.log" >&2
    die "run $1 failed"
  fi
  end "$dir/txrelay.pid" TERM 40
}
for n in $(seq 1 "$runs"); do
  say "run $n of $runs"
  one_run "$n"
done
printf '\n%s records of %s bytes, %s workers, %s cores, PostgreSQL %s\n\n' "${BENCH_RECORDS:-60000}" "${BENCH_BYTES:-1000}" \
  "${BENCH_WORKERS:-64}" "$(nproc)" "$(psql "$TXRELAY_TEST_PG" -Atc 'show server_version')"
"$bed" measure table "$dir/runs.jsonl"
