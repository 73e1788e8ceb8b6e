#!/usr/bin/env bash
# Part of `make bench`: kill -9 at full load, and how soon the next process has taken up what the dead one left. Its own
# PostgreSQL, Kafka and HTTP service; prints a Markdown table. Goals: 2 s, 5 s, 5 s.
#   BENCH_KILLS=5  BENCH_WORKERS=64  BENCH_CRASH_RATE=2000 (records a second)  BENCH_CRASH_BURST=20000 (more before each kill)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
here=$root/tests/bed
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"
# shellcheck source=benches/common.sh
. "$root/benches/common.sh"

CARGO_TARGET_DIR=$(cargo_target)
export CARGO_TARGET_DIR
profile=${BENCH_PROFILE:-release}
if [ "${1:-}" != inside ]; then
  "$here/setup.sh"
  [ "$profile" != release ] || (cd "$root" && cargo build --release --features bed)
  exec "$here/with-bed.sh" "$0" inside
fi

bed=$CARGO_TARGET_DIR/$profile/bed
dir=$TXRELAY_TEST_DIR
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  trap '' INT TERM HUP
  end "$dir/ledger.pid" TERM 2
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

start_ledger
topic=bench-crash
pipeline "$topic"
status=0
STATE_DIRECTORY=$dir/$topic.state "$bed" crash --brokers "$TXRELAY_TEST_KAFKA" --topic "$topic" --ledger-url "$ledger" \
  --dsn "$TXRELAY_TEST_PG" --schema txrelay_bench_crash --kills "${BENCH_KILLS:-5}" --rate "${BENCH_CRASH_RATE:-2000}" \
  --burst "${BENCH_CRASH_BURST:-20000}" --log "$dir/txrelay.log" \
  -- "$CARGO_TARGET_DIR/$profile/txrelay" -c "$dir/$topic.toml" run || status=$?
[ "$status" = 0 ] || tail -n 30 "$dir/txrelay.log" >&2
exit "$status"
