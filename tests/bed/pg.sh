#!/usr/bin/env bash
# A private PostgreSQL cluster in DIR on a free loopback port. Nothing of the system's PostgreSQL but its programs is used.
#   pg.sh up DIR [--set k=v]... [--env K=V]...   creates it if DIR holds none, starts it (with this environment), prints its DSN
#   pg.sh down DIR [-m MODE]            stops it: fast (default), smart or immediate; the data stay
#   pg.sh restart DIR [-m MODE]         the same port again; immediate is a crash
#   pg.sh env DIR                       TXRELAY_TEST_PG=..., PG_PID=... for eval
# Everybody on this machine may connect to it as superuser: for tests on loopback only. fsync is on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"

bin=$(find /usr/lib/postgresql -mindepth 3 -maxdepth 3 -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
bin=${bin%/initdb}
[ -n "$bin" ] || die "no PostgreSQL server in /usr/lib/postgresql/*/bin: run tests/bed/setup.sh"

# PostgreSQL refuses to run as root.
as_owner() {
  if [ "$(id -u)" = 0 ]; then
    setpriv --reuid="$owner" --regid="$(id -g "$owner")" --clear-groups --no-new-privs env HOME="$dir" "$@"
  else
    "$@"
  fi
}
pick_owner() {
  owner=$(id -un)
  [ "$(id -u)" != 0 ] || { owner=nobody && id postgres >/dev/null 2>&1 && owner=postgres; }
}
dsn() { printf 'postgresql://postgres@127.0.0.1:%s/postgres\n' "$port"; }

create() {
  port=$(free_port)
  mkdir -p "$dir"
  if [ "$(id -u)" = 0 ]; then
    chown "$owner" "$dir"
    as_owner test -x "$dir" || die "$dir: user $owner cannot reach it; the folders above need mode 711 or more"
  fi
  chmod 700 "$dir"
  as_owner "$bin/initdb" --no-sync --auth=trust --username=postgres --encoding=UTF8 --no-locale -D "$dir/data" >"$dir/initdb.log" 2>&1 \
    || { cat "$dir/initdb.log" >&2; die "initdb failed"; }
  # A path of a unix socket holds 107 bytes at most.
  local socket="$dir"
  [ "${#dir}" -le 85 ] || socket=
  cat >>"$dir/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$socket'
max_connections = 200
fsync = on
synchronous_commit = on
full_page_writes = on
log_line_prefix = '%m [%p] %a '
CONF
  printf '%s\n' "$port" >"$dir/port"
}
start() {
  local n=0 pid
  [ ! -e "$dir/server.pid" ] || ! pid_of "$dir/server.pid" >/dev/null || return 0
  touch "$dir/log"
  # In this function's own process, so that the pid is the server's: setpriv and env replace themselves.
  if [ "$(id -u)" = 0 ]; then
    spawn "$dir/server.pid" "$dir/log" setpriv --reuid="$owner" --regid="$(id -g "$owner")" --clear-groups --no-new-privs \
      env ${envs[@]+"${envs[@]}"} "$bin/postgres" -D "$dir/data"
  else
    spawn "$dir/server.pid" "$dir/log" env ${envs[@]+"${envs[@]}"} "$bin/postgres" -D "$dir/data"
  fi
  until "$bin/pg_isready" -q -h 127.0.0.1 -p "$port"; do
    pid=$(pid_of "$dir/server.pid") || { tail -n 15 "$dir/log" >&2; die "PostgreSQL did not start, see $dir/log"; }
    n=$((n + 1))
    [ "$n" -le 1200 ] || die "PostgreSQL (pid $pid) not ready after 60 s, see $dir/log"
    sleep 0.05
  done
}
stop() {
  case $mode in
    smart) end "$dir/server.pid" TERM 60 ;;
    fast) end "$dir/server.pid" INT 60 ;;
    immediate) end "$dir/server.pid" QUIT 20 ;;
    *) die "unknown mode $mode" ;;
  esac
}

cmd=${1:-help}
case $cmd in up | down | restart | env) ;; *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
dir=${2:?folder}
shift 2
mode=fast sets=() envs=()
while [ $# -gt 0 ]; do
  case $1 in
    -m) mode=${2:?mode}; shift 2 ;;
    --set) sets+=("${2:?k=v}"); shift 2 ;;
    --env) envs+=("${2:?K=V}"); shift 2 ;;
    *) die "unknown option $1" ;;
  esac
done
pick_owner
[ "${dir#/}" != "$dir" ] || dir=$PWD/$dir
if [ "$cmd" = up ] && [ ! -s "$dir/port" ]; then create; fi
[ -s "$dir/port" ] || die "$dir holds no cluster; run pg.sh up first"
read -r port <"$dir/port"
case $cmd in
  up)
    for set in ${sets[@]+"${sets[@]}"}; do printf "%s = '%s'\n" "${set%%=*}" "${set#*=}" >>"$dir/data/postgresql.conf"; done
    start
    dsn
    ;;
  down) stop ;;
  restart) stop; start; dsn ;;
  env) printf 'TXRELAY_TEST_PG=%s\nPG_PID=%s\n' "$(dsn)" "$(pid_of "$dir/server.pid" || true)" ;;
esac
