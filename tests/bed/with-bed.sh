#!/usr/bin/env bash
# with-bed.sh [--no-kafka] [--kafka VERSION] [--postgres VERSION] CMD...: runs CMD with a PostgreSQL and a Kafka of its own, ends both and removes
# their data, also on Ctrl-C, TERM and failure. Returns CMD's status. CMD finds
#   TXRELAY_TEST_PG      DSN of a superuser on database postgres     TXRELAY_TEST_PG_DIR     for pg.sh down, restart
#   TXRELAY_TEST_KAFKA   bootstrap address                           TXRELAY_TEST_KAFKA_DIR  for kafka.sh kill9, start
#   TXRELAY_TEST_DIR     a folder for its own files
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"

kafka=yes version=() postgres=()
while :; do
  case ${1:-} in
    --no-kafka) kafka=no; shift ;;
    --kafka) version=(--version "${2:?version}"); shift 2 ;;
    --postgres) postgres=(--version "${2:?version}"); shift 2 ;;
    -*) die "unknown option $1" ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || die "which command?"

job='' dir=$(mktemp -d "${TMPDIR:-/tmp}/txrelay-bed.XXXXXX")
chmod 711 "$dir" # PostgreSQL may have to run as another user
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  trap '' INT TERM HUP
  local n=0
  if [ -n "$job" ] && kill -s TERM -- "-$job" 2>/dev/null; then # the whole group: cargo does not pass signals on to the tests
    while kill -s 0 -- "-$job" 2>/dev/null && [ "$n" -lt 100 ]; do n=$((n + 1)); sleep 0.1; done
    kill -s KILL -- "-$job" 2>/dev/null || true
  fi
  [ ! -s "$dir/kafka/state" ] || "$here/kafka.sh" down "$dir/kafka" || true
  # Clusters of tests that were broken off.
  local left
  for left in "$dir"/cmd/kafka-*; do [ ! -s "$left/state" ] || "$here/kafka.sh" kill9 "$left" || true; done
  for left in "$dir"/cmd/pg-*; do [ ! -d "$left" ] || "$here/pg.sh" drop "$left" || true; done
  [ ! -s "$dir/pg/port" ] || "$here/pg.sh" down "$dir/pg" -m immediate || true
  rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir "$dir/cmd"
export TXRELAY_TEST_DIR=$dir/cmd
TXRELAY_TEST_PG=$("$here/pg.sh" up "$dir/pg" ${postgres[@]+"${postgres[@]}"})
export TXRELAY_TEST_PG TXRELAY_TEST_PG_DIR=$dir/pg
if [ "$kafka" = yes ]; then
  TXRELAY_TEST_KAFKA=$("$here/kafka.sh" up "$dir/kafka" ${version[@]+"${version[@]}"})
  export TXRELAY_TEST_KAFKA TXRELAY_TEST_KAFKA_DIR=$dir/kafka
fi

# In the background with `wait`, because a shell that waits in the foreground hears of a TERM only when the command is done.
# With job control, so that it has a process group of its own.
set -m
"$@" &
job=$!
set +m
status=0
wait "$job" || status=$?
exit "$status"
