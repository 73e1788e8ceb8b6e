#!/usr/bin/env bash
# Part of `make bench`: kill -9 at full load, and how soon the next process has taken up what the dead one left. Its own
# PostgreSQL, Kafka and HTTP service; prints a Markdown table. Goals: 2 s, 5 s, 5 s.
#   BENCH_KILLS=5  BENCH_WORKERS=64  BENCH_CRASH_RATE=2000 (records a second)  BENCH_CRASH_BURST=20000 (more before each kill)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
here=$root/tests/bed
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"

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

spawn "$dir/ledger.pid" "$dir/ledger.log" "$bed" ledger
until grep -q '^listening on' "$dir/ledger.log"; do sleep 0.02; done
ledger=http://$(sed -n 's/^listening on //p' "$dir/ledger.log")
topic=bench-crash
"$bed" topic --brokers "$TXRELAY_TEST_KAFKA" --create "$topic" --partitions 6
cat >"$dir/crash.toml" <<CONF
[kafka]
brokers = ["$TXRELAY_TEST_KAFKA"]
topics = ["$topic"]
start = "earliest"

[postgres]
url = "$TXRELAY_TEST_PG?sslmode=disable"
schema = "crash"

[downstream]
url = "$ledger/transactions"
workers = ${BENCH_WORKERS:-64}

[metrics]
listen = "127.0.0.1:$(free_port)"
CONF
chmod 640 "$dir/crash.toml"
mkdir -m 700 "$dir/state"
status=0
STATE_DIRECTORY=$dir/state "$bed" crash --brokers "$TXRELAY_TEST_KAFKA" --topic "$topic" --ledger-url "$ledger" \
  --dsn "$TXRELAY_TEST_PG" --schema crash --kills "${BENCH_KILLS:-5}" --rate "${BENCH_CRASH_RATE:-2000}" \
  --burst "${BENCH_CRASH_BURST:-20000}" --log "$dir/txrelay.log" \
  -- "$CARGO_TARGET_DIR/$profile/txrelay" -c "$dir/crash.toml" run || status=$?
[ "$status" = 0 ] || tail -n 30 "$dir/txrelay.log" >&2
exit "$status"
