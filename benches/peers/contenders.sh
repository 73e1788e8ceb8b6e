# shellcheck shell=bash
# shellcheck disable=SC2154 # what the harness sets: $peers, $dir, $root, $topic, $dsn, $url, $workers, $port
# How each contender is set up and started, at its documented best. Sourced by benches/peers.sh. Every contender finds the same
# topic, a database of its own, and the same service; `start_NAME` writes $dir/contender-*.pid. All but Bento store every message.

contender_env() {
  env "BROKERS=$TXRELAY_TEST_KAFKA" "TOPIC=$topic" "GROUP=$topic" "DSN=$dsn" "URL=$url" "WORKERS=$workers" "$@"
}

setup_txrelay() {
  cat >"$dir/contender.toml" <<CONF
name = "bench"
[kafka]
brokers = ["$TXRELAY_TEST_KAFKA"]
topics = ["$topic"]
group = "$topic"
start = "earliest"
[postgres]
url = "$dsn?sslmode=disable"
[downstream]
url = "$url"
workers = $workers
[metrics]
listen = "127.0.0.1:$port"
CONF
  chmod 640 "$dir/contender.toml"
  rm -rf "$dir/contender.state"
  mkdir -m 700 "$dir/contender.state"
}
start_txrelay() {
  spawn "$dir/contender-1.pid" "$dir/contender.log" env "STATE_DIRECTORY=$dir/contender.state" \
    "${BENCH_TXRELAY:-$CARGO_TARGET_DIR/release/txrelay}" -c "$dir/contender.toml" run
}

setup_river() { contender_env "$peers/bin/river" migrate; }
start_river() { spawn_with_env "$dir/contender-1.pid" "$peers/bin/river" run; }

setup_graphile() { contender_env node "$peers/graphile/worker.js" migrate; }
start_graphile() {
  spawn_with_env "$dir/contender-1.pid" node "$peers/graphile/bridge.js"
  spawn_with_env "$dir/contender-2.pid" node "$peers/graphile/worker.js" run
}

setup_bento() { :; }
start_bento() { spawn_with_env "$dir/contender-1.pid" "$peers/bin/bento" -c "$root/benches/peers/bento/bento.yaml"; }

spawn_with_env() { # PIDFILE CMD...
  local file=$1
  shift
  spawn "$file" "$dir/contender.log" env "BROKERS=$TXRELAY_TEST_KAFKA" "TOPIC=$topic" "GROUP=$topic" "DSN=$dsn" "URL=$url" \
    "WORKERS=$workers" "$@"
}
