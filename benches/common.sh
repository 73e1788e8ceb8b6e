# shellcheck shell=bash
# shellcheck disable=SC2154 # $bed and $dir are set by who sources it
# What the benches share. Sourced, never run; wants $bed (the program), $dir (a folder) and tests/bed/lib.sh.

# The HTTP service; its address in $ledger.
start_ledger() {
  spawn "$dir/ledger.pid" "$dir/ledger.log" "$bed" ledger
  until grep -qs '^listening on' "$dir/ledger.log"; do sleep 0.02; done
  ledger=http://$(sed -n 's/^listening on //p' "$dir/ledger.log")
}

# pipeline NAME [PARTITIONS]: a topic of 6 partitions or so many, $dir/NAME.toml (its schema is txrelay_NAME, with - as _) and a state folder
# $dir/NAME.state; the metrics port in $port.
pipeline() {
  port=$(free_port)
  "$bed" topic --brokers "$TXRELAY_TEST_KAFKA" --create "$1" --partitions "${2:-6}"
  cat >"$dir/$1.toml" <<CONF
[kafka]
brokers = ["$TXRELAY_TEST_KAFKA"]
topics = ["$1"]
start = "earliest"

[postgres]
url = "$TXRELAY_TEST_PG?sslmode=disable"

[downstream]
url = "$ledger/transactions"
workers = ${workers:-${BENCH_WORKERS:-64}}

[metrics]
listen = "127.0.0.1:$port"
CONF
  chmod 640 "$dir/$1.toml"
  mkdir -m 700 "$dir/$1.state"
}
