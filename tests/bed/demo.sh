#!/usr/bin/env bash
# `make demo`: the main job on real parts. Kafka -> txrelay -> PostgreSQL -> an HTTP service, with an outage of the service
# and a kill -9 of txrelay under load, ending in a ledger. Everything runs on loopback in a folder of its own, and is gone
# afterwards, also after Ctrl-C.
#   DEMO_RECORDS=20000   transactions           DEMO_SECONDS=40    time over which they are produced
#   DEMO_KEEP=1          leave all up at the end until Ctrl-C
#   DEMO_KAFKA=VERSION   another Kafka
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"

records=${DEMO_RECORDS:-20000}
seconds=${DEMO_SECONDS:-40}
rate=$(((records + seconds - 1) / seconds))
CARGO_TARGET_DIR=$(cargo_target)
export CARGO_TARGET_DIR
bed=$CARGO_TARGET_DIR/release/bed
txrelay=$CARGO_TARGET_DIR/release/txrelay

dir=$(mktemp -d "${TMPDIR:-/tmp}/txrelay-demo.XXXXXX")
chmod 711 "$dir" # PostgreSQL may have to run as another user
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  trap '' INT TERM HUP
  [ ! -t 1 ] || printf '\n'
  say "Stopping everything and removing $dir"
  end "$dir/produce.pid" TERM 2
  end "$dir/txrelay.pid" TERM 20
  end "$dir/ledger.pid" TERM 2
  [ ! -s "$dir/kafka/state" ] || "$here/kafka.sh" down "$dir/kafka" || true
  [ ! -s "$dir/pg/port" ] || "$here/pg.sh" down "$dir/pg" || true
  rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

build() {
  local began=${EPOCHREALTIME/[.,]/}
  (cd "$here/../.." && cargo build --release --features bed)
  took "release build" "$began"
}
# shellcheck disable=SC2317 # called by step
start_ledger() {
  spawn "$dir/ledger.pid" "$dir/ledger.log" "$bed" ledger --file "$dir/ledger.book"
  until grep -q '^listening on' "$dir/ledger.log"; do
    pid_of "$dir/ledger.pid" >/dev/null || { cat "$dir/ledger.log" >&2; return 1; }
    sleep 0.02
  done
}
# shellcheck disable=SC2317 # called by step
start_txrelay() {
  local n=0
  spawn "$dir/txrelay.pid" "$dir/txrelay.log" env "STATE_DIRECTORY=$dir/state" "$txrelay" -c "$dir/payments.toml" run
  until "$bed" http GET "$metrics/readyz" >/dev/null 2>&1; do
    pid_of "$dir/txrelay.pid" >/dev/null || { tail -n 20 "$dir/txrelay.log" >&2; return 1; }
    n=$((n + 1))
    [ "$n" -lt 600 ] || { tail -n 20 "$dir/txrelay.log" >&2; say "txrelay not ready after 60 s"; return 1; }
    sleep 0.1
  done
}
watch() { "$bed" watch --metrics "$metrics/metrics" --ledger-url "$ledger" --since "$since" "$@"; }
event() { printf -- '-- %s\n' "$*"; }

say "Setting up"
"$here/setup.sh"
build
step "PostgreSQL: new cluster, started" "$here/pg.sh" up "$dir/pg"
step "Kafka: jars (downloaded once)" "$here/kafka.sh" fetch ${DEMO_KAFKA:+"$DEMO_KAFKA"}
step "Kafka: new broker, started" "$here/kafka.sh" up "$dir/kafka" ${DEMO_KAFKA:+--version "$DEMO_KAFKA"}
eval "$("$here/pg.sh" env "$dir/pg")"
eval "$("$here/kafka.sh" env "$dir/kafka")"
step "the HTTP service" start_ledger
ledger=http://$(sed -n 's/^listening on //p' "$dir/ledger.log" | tail -n 1)
step "a topic of 6 partitions" "$bed" topic --brokers "$TXRELAY_TEST_KAFKA" --create payments --partitions 6
metrics_port=$(free_port)
metrics=http://127.0.0.1:$metrics_port
mkdir -m 700 "$dir/state"
cat >"$dir/payments.toml" <<CONF
[kafka]
brokers = ["$TXRELAY_TEST_KAFKA"]
topics = ["payments"]
start = "earliest"

[postgres]
url = "$TXRELAY_TEST_PG?sslmode=disable"

[downstream]
url = "$ledger/transactions"

[metrics]
listen = "127.0.0.1:$metrics_port"
CONF
chmod 640 "$dir/payments.toml"
step "txrelay: schema made, group joined" start_txrelay

since=$(date +%s%3N)
event "producing $records transactions of about 1 kB at $rate/s, with some duplicates, conflicts and unreadable records"
spawn "$dir/produce.pid" "$dir/produce.log" "$bed" produce --brokers "$TXRELAY_TEST_KAFKA" --topic payments --count "$records" \
  --rate "$rate" --duplicates 5 --conflicts 2 --unreadable 3 --ledger "$dir/produced.jsonl"
watch --for "$((seconds / 5))s"
event "the service is down: it answers 503 for 15 s"
"$bed" http PUT "$ledger/_/behave" '{"status":503,"for_ms":15000}' >/dev/null
watch --for 15s
event "the service is back"
watch --for "$((seconds / 8))s"
event "kill -9 of txrelay"
end "$dir/txrelay.pid" KILL
watch --for 1s
began=${EPOCHREALTIME/[.,]/}
start_txrelay || die "txrelay did not come back"
event "txrelay is back after $(((${EPOCHREALTIME/[.,]/} - began) / 1000)) ms"
status=0
watch --for 180s --until-accepted "$records" || status=$?
while pid_of "$dir/produce.pid" >/dev/null; do sleep 0.1; done
grep -q '^produced' "$dir/produce.log" || { cat "$dir/produce.log" >&2; status=1; }
"$bed" verdict --produced "$dir/produced.jsonl" --ledger-url "$ledger" --dsn "$TXRELAY_TEST_PG" --schema txrelay_payments --wait 30s \
  || status=$?
[ "$status" = 0 ] || { say "The last lines of txrelay's log:"; tail -n 20 "$dir/txrelay.log" >&2; }

keep=${DEMO_KEEP:-0}
printf '\nWhere to look further%s:\n' "$([ "$keep" = 1 ] || echo " (DEMO_KEEP=1 make demo leaves all of it up until Ctrl-C)")"
printf '  %s\n' "psql '$TXRELAY_TEST_PG' -c 'select * from txrelay_payments.transaction_status limit 5'" \
  "$txrelay -c $dir/payments.toml status" "$metrics/metrics" "$ledger/_/summary" "$dir/txrelay.log"
if [ "$keep" = 1 ]; then
  event "all is up; Ctrl-C ends it"
  trap 'exit "$status"' INT TERM
  while :; do sleep 1; done
fi
exit "$status"
