#!/usr/bin/env bash
# `make bench`: what one delivery costs, on this machine, with its own PostgreSQL, Kafka and HTTP service. Prints Markdown tables of medians
# and ranges, and with BENCH_PLOTS=FOLDER writes plots. Times of one machine say little; the ratios of one run do. --quick: the three
# that say most, once each. Every run has a daemon, a topic and a schema of its own.
#   BENCH_SCENARIOS="idle burst slow workers rate catch-up backlog grown stored retention pinned processes"  BENCH_RUNS=3  BENCH_RECORDS=60000
#   BENCH_WORKERS=64  BENCH_BYTES=1000  BENCH_RATES="100 500 1000"  BENCH_SECONDS=30 (of each rate)
#   BENCH_STORED="10000 1000000 5000000"  BENCH_BACKLOG=1000000  BENCH_GROWN_STORED=5000000  BENCH_RETENTION=1000000  BENCH_RETENTION_SECONDS=230
#   BENCH_OUT=FILE       the runs as JSON lines          BENCH_BEFORE=FILE  another build of txrelay, which takes turns with this one
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
here=$root/tests/bed
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"
# shellcheck source=benches/common.sh
. "$root/benches/common.sh"

CARGO_TARGET_DIR=$(cargo_target)
export CARGO_TARGET_DIR
if [ "${1:-}" = --quick ]; then
  export BENCH_SCENARIOS=${BENCH_SCENARIOS:-idle burst rate} BENCH_RUNS=${BENCH_RUNS:-1} BENCH_RATES=${BENCH_RATES:-500}
  export BENCH_SECONDS=${BENCH_SECONDS:-10} BENCH_RECORDS=${BENCH_RECORDS:-30000}
  shift
fi
if [ "${1:-}" != inside ]; then
  "$here/setup.sh"
  (cd "$root" && cargo build --release --features bed)
  exec "$here/with-bed.sh" "$0" inside
fi

bed=$CARGO_TARGET_DIR/release/bed
dir=$TXRELAY_TEST_DIR
out=${BENCH_OUT:-$dir/runs.jsonl}
runs=${BENCH_RUNS:-3}
records=${BENCH_RECORDS:-60000}
eval "$("$here/pg.sh" env "$TXRELAY_TEST_PG_DIR")"
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  trap '' INT TERM HUP
  stop_daemons
  end "$dir/ledger.pid" TERM 2
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

stop_daemons() { local file; for file in "$dir"/txrelay-*.pid; do [ ! -e "$file" ] || end "$file" TERM 40; done; }
failed() { tail -n 20 "$dir/txrelay.log" >&2; die "$1"; }
sql() { psql -qv ON_ERROR_STOP=1 "$TXRELAY_TEST_PG" -c "set search_path = $schema" "$@"; }
behave() { "$bed" http PUT "$ledger/_/behave" "$1" >/dev/null; }

# A pipeline of a name of its own: its files and topic, no process yet.
n_pipelines=0
fresh() { # PARTITIONS
  n_pipelines=$((n_pipelines + 1))
  topic=bench-$n_pipelines
  schema=txrelay_bench_$n_pipelines
  pipeline "$topic" "$1"
  behave '{"delay_ms":0}'
  "$bed" http POST "$ledger/_/reset" >/dev/null
}
txrelay() { "$binary" -c "$dir/$topic.toml" "$@"; }
# start_daemon N: the N-th process of the pipeline; its pid is added to $daemons.
start_daemon() {
  local listen=$port
  [ "$1" = 1 ] || { listen=$(free_port) && mkdir -m 700 "$dir/$topic.state.$1"; }
  spawn "$dir/txrelay-$1.pid" "$dir/txrelay.log" env "STATE_DIRECTORY=$dir/$topic.state$([ "$1" = 1 ] || printf '.%s' "$1")" \
    "$binary" -c "$dir/$topic.toml" --set "metrics.listen=\"127.0.0.1:$listen\"" run
  "$bed" http GET "http://127.0.0.1:$listen/${ready:-readyz}" --retry 60s >/dev/null || failed "txrelay did not start"
  daemons+=(--daemon "$(pid_of "$dir/txrelay-$1.pid")")
}
# measured COMMAND SCENARIO X ARGS...
measured() {
  local command=$1 scenario=$2 x=$3
  shift 3
  "$bed" measure "$command" --ledger-url "$ledger" --dsn "$TXRELAY_TEST_PG" "${daemons[@]}" --postgres "$PG_PID" --scenario "$scenario" \
    --contender "$contender" --x "$x" --limit 900s --out "$out" "$@" >/dev/null || failed "$scenario failed"
}
produced() { # SCENARIO X COUNT [ARGS...]
  local scenario=$1 x=$2 count=$3
  shift 3
  measured run "$scenario" "$x" --brokers "$TXRELAY_TEST_KAFKA" --topic "$topic" --count "$count" --bytes "${BENCH_BYTES:-1000}" \
    --seed "$n_pipelines" --prefix "r$n_pipelines" "$@"
}
# One process and nothing stored before it.
start_fresh() {
  daemons=()
  fresh "${1:-6}"
  start_daemon 1
}
finished() {
  stop_daemons
  # What one run has left must not be vacuumed during the next.
  psql -q "$TXRELAY_TEST_PG" -c "set client_min_messages = warning" -c "drop schema $schema cascade" -c checkpoint
}

burst() { start_fresh && produced burst "$workers" "$records" && finished; }
# The service takes 20 ms: at most workers / 20 ms.
slow() { start_fresh && behave '{"delay_ms":20}' && produced slow "$workers" $((records / 2)) && finished; }
workers_varied() {
  local workers
  for workers in 8 16 32 64 128; do
    start_fresh && behave '{"delay_ms":5}' && produced workers "$workers" $((records / 2)) && finished
  done
}
rates() {
  local rate
  for rate in ${BENCH_RATES:-100 500 1000}; do
    start_fresh && produced "rate" "$rate" $((rate * ${BENCH_SECONDS:-30})) --rate "$rate" && finished
  done
}
# First, while nothing of what others left is vacuumed beside it.
idle() { start_fresh && sleep 20 && measured idle idle 0 --time 30s && finished; }
# Records that wait in Kafka, and a pipeline that stores and does not deliver.
catch_up() {
  local count=$((records * 5))
  daemons=()
  fresh 6
  paused
  "$bed" produce --brokers "$TXRELAY_TEST_KAFKA" --topic "$topic" --count "$count" --bytes "${BENCH_BYTES:-1000}" >/dev/null 2>&1
  ready=livez start_daemon 1 # it is not ready: it delivers nothing
  measured persist catch-up 0 --schema "$schema" --count "$count"
  finished
}
paused() { txrelay migrate 2>>"$dir/txrelay.log" && sql -c "update pipeline set paused_at = now(), paused_by = 'bench'"; }
# The daemons begin when they are looked at.
drained() { # SCENARIO X COUNT [PROCESSES]
  local measuring n
  for n in $(seq 1 "${4:-1}"); do ready=livez start_daemon "$n"; done
  measured drain "$1" "$2" --count "$3" --metrics "http://127.0.0.1:$port/metrics" &
  measuring=$!
  sleep 1
  txrelay resume 2>>"$dir/txrelay.log" >&2
  wait "$measuring"
}
with_stored() { # FROM TO DELIVERED [DAYS]
  txrelay migrate 2>>"$dir/txrelay.log" # what is there already stays
  psql -qv ON_ERROR_STOP=1 -v "from=$1" -v "to=$2" -v "days=${4:-3}" -v "delivered=$3" "$TXRELAY_TEST_PG" \
    -c "set search_path = $schema; set synchronous_commit = off" -f "$root/benches/stored.sql" >/dev/null
}
# So many transactions wait to be delivered: as after a long outage.
backlog() {
  daemons=()
  fresh 6
  paused
  with_stored 1 "${BENCH_BACKLOG:-1000000}" false
  drained backlog "${BENCH_BACKLOG:-1000000}" "${BENCH_BACKLOG:-1000000}"
  finished
}
# The same number of deliveries out of few open ones, and out of a million beside five million stored ones.
grown() {
  local part=${BENCH_GROWN:-200000} delivered open
  for delivered in 0 "${BENCH_GROWN_STORED:-5000000}"; do
    open=$part
    [ "$delivered" = 0 ] || open=${BENCH_BACKLOG:-1000000}
    daemons=()
    fresh 6
    paused
    [ "$delivered" = 0 ] || with_stored 1 "$delivered" true
    with_stored $((delivered + 1)) $((delivered + open)) false
    drained grown "$((delivered + open))" "$part"
    finished
  done
}
# Latencies while retention deletes what was delivered before its time, and with as much stored that is not old enough. A million took
# it 57 to 83 s; where the machine was slow, more than 158 s but less than 230.
retention() {
  local rows=${BENCH_RETENTION:-1000000} rate=500 days
  for days in 3 100; do
    daemons=()
    fresh 6
    with_stored 1 "$rows" true "$days"
    start_daemon 1
    produced retention "$days" $((rate * ${BENCH_RETENTION_SECONDS:-230})) --rate "$rate"
    say "  $days days old: $(psql -qAt "$TXRELAY_TEST_PG" -c "select count(*) from $schema.tx where transaction_id like 'sql-%'") of $rows are left"
    finished
  done
}
# So many transactions lie in the tables before the burst.
stored() {
  local rows
  for rows in ${BENCH_STORED:-10000 1000000 5000000}; do
    daemons=()
    fresh 6
    with_stored 1 "$rows" true
    start_daemon 1
    produced stored "$rows" "$records"
    finished
  done
}
# A snapshot that stays open keeps PostgreSQL from removing what is dead.
pinned() {
  start_fresh
  local holder
  psql -q "$TXRELAY_TEST_PG" -c 'begin isolation level repeatable read' -c 'select 1' -c 'select pg_sleep(3600)' >/dev/null 2>&1 &
  holder=$!
  produced pinned "$workers" "$records"
  kill "$holder" 2>/dev/null || true
  psql -qAt "$TXRELAY_TEST_PG" -c "select pg_terminate_backend(pid) from pg_stat_activity where query like 'select pg_sleep(3600)'" >/dev/null
  finished
}
# As many requests in flight in all, whether one process sends them or four: out of Kafka, and out of a backlog that all claim from.
processes() {
  local many n all=$workers workers
  for many in 1 2 4; do
    workers=$((all / many))
    start_fresh 12
    for n in $(seq 2 "$many"); do start_daemon "$n"; done
    sleep 3 # each has its partitions
    produced processes "$many" "$records"
    finished
    daemons=()
    fresh 12
    paused
    with_stored 1 "$records" false
    drained "processes, a backlog" "$many" "$records" "$many"
    finished
  done
}

start_ledger
workers=${BENCH_WORKERS:-64}
run_with() { # BUILD
  contender=$1
  binary=$CARGO_TARGET_DIR/release/txrelay
  [ "$1" = txrelay ] || binary=$BENCH_BEFORE
  case $scenario in
    workers) workers_varied ;;
    rate) rates ;;
    catch-up) catch_up ;;
    burst | slow | idle | backlog | grown | stored | retention | pinned | processes) "$scenario" ;;
    *) die "unknown scenario $scenario" ;;
  esac
}
builds=(txrelay)
[ -z "${BENCH_BEFORE:-}" ] || builds+=(before)
for n in $(seq 1 "$runs"); do
  # There and back, so that what changes meanwhile meets both alike.
  order=("${builds[@]}")
  [ $((n % 2)) = 1 ] || mapfile -t order < <(printf '%s\n' "${builds[@]}" | tac)
  for scenario in ${BENCH_SCENARIOS:-idle burst slow workers rate catch-up backlog grown stored retention pinned processes}; do
    for build in "${order[@]}"; do
      say "run $n of $runs: $scenario${BENCH_BEFORE:+, $build}"
      run_with "$build"
    done
  done
done
printf '\n%s records of %s bytes, %s workers, %s cores, PostgreSQL %s\n' "$records" "${BENCH_BYTES:-1000}" "$workers" "$(nproc)" \
  "$(psql "$TXRELAY_TEST_PG" -Atc 'show server_version')"
"$bed" measure contest "$out"
if [ -n "${BENCH_PLOTS:-}" ]; then
  plot() { # SCENARIO Y TITLE X_TITLE Y_TITLE
    ! grep -q "\"scenario\":\"$1\"" "$out" || "$bed" measure plot "$out" --scenario "$1" --y "$2" --title "$3" --x-title "$4" --y-title "$5" \
      --out "$BENCH_PLOTS/$1.svg"
  }
  mkdir -p "$BENCH_PLOTS"
  plot workers deliveries_per_second "Throughput against workers, the service takes 5 ms" workers "deliveries/s"
  plot rate p99_ms "Latency against offered rate" "records/s" "p99 produced -> received, ms"
  plot stored sum_us "Cost of a delivery against rows already stored" "transactions stored" "CPU us per delivery, txrelay and PostgreSQL"
fi
