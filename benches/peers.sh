#!/usr/bin/env bash
# `make bench-peers`: txrelay beside what a user would pick instead, in one run: the same broker, topic of 6 partitions, PostgreSQL, HTTP
# service, records and number of requests in flight. Contenders take turns (A B C D, D C B A, ...), each with a topic and a database of
# its own; the first records are delivered before anything is measured. Prints Markdown tables of medians and ranges; a contender
# that lost something has its numbers in brackets. --quick: one short round.
#   BENCH_CONTENDERS="txrelay graphile river bento"  BENCH_SCENARIOS="kill burst slow rate"  BENCH_RUNS=3  BENCH_RECORDS=30000
#   BENCH_WORKERS=64  BENCH_RATE=500 (records a second)  BENCH_SECONDS=30 (of that)  BENCH_STALL=75 (s without a delivery = lost)
#   BENCH_FLUSH_US=5000  each flush of PostgreSQL's takes so much longer, as on a network disk
#   BENCH_OUT=FILE       the runs as JSON lines       BENCH_TXRELAY=FILE  another build of txrelay, to compare two
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
here=$root/tests/bed
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"
# shellcheck source=benches/common.sh
. "$root/benches/common.sh"
# shellcheck source=benches/peers/contenders.sh
. "$root/benches/peers/contenders.sh"

CARGO_TARGET_DIR=$(cargo_target)
export CARGO_TARGET_DIR
if [ "${1:-}" = --quick ]; then
  export BENCH_RUNS=${BENCH_RUNS:-1} BENCH_RECORDS=${BENCH_RECORDS:-10000} BENCH_SECONDS=${BENCH_SECONDS:-10}
  export BENCH_SCENARIOS=${BENCH_SCENARIOS:-burst slow rate}
  shift
fi
if [ "${1:-}" != inside ]; then
  "$here/setup.sh"
  BENCH_PEERS_HOME=$("$root/benches/peers/setup.sh")
  export BENCH_PEERS_HOME
  (cd "$root" && cargo build --release --features bed)
  exec "$here/with-bed.sh" "$0" inside
fi

bed=$CARGO_TARGET_DIR/release/bed
dir=$TXRELAY_TEST_DIR
peers=$BENCH_PEERS_HOME
out=${BENCH_OUT:-$dir/runs.jsonl}
workers=${BENCH_WORKERS:-64}
runs=${BENCH_RUNS:-3}
records=${BENCH_RECORDS:-30000}
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  trap '' INT TERM HUP
  stop_contender TERM
  end "$dir/ledger.pid" TERM 2
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

pids() { local file; for file in "$dir"/contender-*.pid; do [ ! -e "$file" ] || pid_of "$file"; done; }
stop_contender() { local file; for file in "$dir"/contender-*.pid; do [ ! -e "$file" ] || end "$file" "$1" 30; done; }
control() { "$bed" http "$1" "$ledger/_/$2" ${3:+"$3"}; }
counted() { control GET summary | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }

# slower_disk: PostgreSQL again, with flushes that take BENCH_FLUSH_US longer.
slower_disk() {
  cc -shared -fPIC -O2 -o "$dir/slow_flush.so" "$root/benches/peers/slow_flush.c" -ldl
  chmod 755 "$dir/slow_flush.so"
  "$here/pg.sh" restart "$TXRELAY_TEST_PG_DIR" --env "LD_PRELOAD=$dir/slow_flush.so" --env "SLOW_FLUSH_US=$BENCH_FLUSH_US" >/dev/null
}

prepare() { # CONTENDER SCENARIO N
  topic=$1-$2-$3
  port=$(free_port)
  url=$ledger/transactions
  "$bed" topic --brokers "$TXRELAY_TEST_KAFKA" --create "$topic" --partitions 6
  psql -q "$TXRELAY_TEST_PG" -c "create database \"$topic\"" -c checkpoint
  dsn=${TXRELAY_TEST_PG%/*}/$topic
  [ "${TXRELAY_TEST_PG#*\?}" = "$TXRELAY_TEST_PG" ] || dsn="$dsn?${TXRELAY_TEST_PG#*\?}"
  : >"$dir/contender.log"
  control POST reset >/dev/null
  control PUT behave "{\"delay_ms\":0}" >/dev/null
  "setup_$1" >>"$dir/contender.log" 2>&1 || failed "$1 could not be set up"
  "start_$1"
}
failed() { tail -n 20 "$dir/contender.log" >&2; die "$1"; }

measured() { # CONTENDER SCENARIO N DELAY_MS [ARGS...]
  local contender=$1 scenario=$2 n=$3 delay=$4 daemons=() pid
  shift 4
  prepare "$contender" "$scenario" "$n"
  for pid in $(pids); do daemons+=(--daemon "$pid"); done
  [ "$delay" = 0 ] || control PUT behave "{\"delay_ms\":$delay}" >/dev/null
  "$bed" measure run --brokers "$TXRELAY_TEST_KAFKA" --topic "$topic" --bytes 1000 --seed "$n" --prefix "$contender$n" --ledger-url "$ledger" \
    --dsn "$dsn" "${daemons[@]}" --postgres "$PG_PID" --contender "$contender" --scenario "$scenario" --out "$out" "$@" >/dev/null \
    || failed "$contender failed"
  finish
}
finish() {
  stop_contender TERM
  psql -q "$TXRELAY_TEST_PG" -c "drop database \"$topic\" with (force)"
}

# kill -9 of all that the contender is at 40 % of the records, started again half a second later.
killed() { # CONTENDER N
  local contender=$1 n=$2 total=10000 before accepted=0 at first='' quiet now
  prepare "$contender" kill "$n"
  control PUT behave "{\"delay_ms\":5}" >/dev/null
  "$bed" produce --brokers "$TXRELAY_TEST_KAFKA" --topic "$topic" --count "$total" --bytes 1000 --seed "$n" --prefix "k" >/dev/null 2>&1
  until [ "$(counted accepted)" -ge $((total * 4 / 10)) ]; do sleep 0.02; done
  stop_contender KILL
  sleep 0.5
  before=$(counted accepted) at=${EPOCHREALTIME/[.,]/}
  "start_$contender"
  quiet=$at accepted=$before
  while [ "$accepted" -lt "$total" ] && [ $((${EPOCHREALTIME/[.,]/} - quiet)) -lt $((${BENCH_STALL:-75} * 1000000)) ]; do
    sleep 0.05
    now=$(counted requests)
    [ "$now" = "${seen:-}" ] || { quiet=${EPOCHREALTIME/[.,]/}; seen=$now; }
    accepted=$(counted accepted)
    [ -n "$first" ] || [ "$accepted" = "$before" ] || first=$((${EPOCHREALTIME/[.,]/} - at))
  done
  printf '{"contender":"%s","scenario":"kill","lost":%d,"sent_twice":%d,"first_s":%s,"last_s":%s}\n' "$contender" $((total - accepted)) \
    "$(counted accepted_twice)" "$(seconds "${first:-0}")" "$(seconds $((quiet - at)))" >>"$out"
  finish
}
seconds() { printf '%d.%03d' $(($1 / 1000000)) $(($1 % 1000000 / 1000)); }

start_ledger
[ -z "${BENCH_FLUSH_US:-}" ] || slower_disk
eval "$("$here/pg.sh" env "$TXRELAY_TEST_PG_DIR")"
read -ra contenders <<<"${BENCH_CONTENDERS:-txrelay graphile river bento}"
for scenario in ${BENCH_SCENARIOS:-kill burst slow rate}; do
  for n in $(seq 1 "$runs"); do
    # There and back, so that what changes meanwhile meets all alike.
    order=("${contenders[@]}")
    [ $((n % 2)) = 1 ] || mapfile -t order < <(printf '%s\n' "${contenders[@]}" | tac)
    for contender in "${order[@]}"; do
      say "$scenario, run $n of $runs: $contender"
      case $scenario in
        kill) [ "$n" != 1 ] || killed "$contender" "$n" ;;
        burst) measured "$contender" burst "$n" 0 --count "$records" ;;
        slow) measured "$contender" "slow" "$n" 20 --count $((records / 2)) ;;
        rate) measured "$contender" "rate" "$n" 0 --count $((${BENCH_RATE:-500} * ${BENCH_SECONDS:-30})) --rate "${BENCH_RATE:-500}" ;;
        *) die "unknown scenario $scenario" ;;
      esac
    done
  done
done
printf '\n%s records of 1,000 bytes, %s in flight, %s cores with broker, PostgreSQL %s, service and contender; slow: the service takes 20 ms; rate: %s a second%s\n' \
  "$records" "$workers" "$(nproc)" "$(psql "$TXRELAY_TEST_PG" -Atc 'show server_version')" "${BENCH_RATE:-500}" \
  "${BENCH_FLUSH_US:+; each flush takes $BENCH_FLUSH_US us longer}"
"$bed" measure contest "$out"
