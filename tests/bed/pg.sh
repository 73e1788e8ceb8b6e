#!/usr/bin/env bash
# A private PostgreSQL cluster in DIR on a free loopback port. Nothing of the system's PostgreSQL but its programs is used.
#   pg.sh up DIR [OPTION]...            creates it if DIR holds none, starts it, prints its DSN
#     --version V                       only at creation: this PostgreSQL from Maven's embedded-postgres-binaries (14.23.0)
#                                       instead of the distribution's; kept in ${TXRELAY_CACHE:-~/.cache/txrelay}/postgresql/V
#     --set k=v                         a line of postgresql.conf
#     --env K=V                         environment of the server, from this start on (LD_PRELOAD of libfaketime)
#     --tmpfs SIZE                      only at creation: its data lie on a tmpfs of this size (64M), to be filled; seen by the
#                                       server alone, and for others below /proc/PG_PID/root; gone with `drop`
#   pg.sh down DIR [-m MODE]            stops it: fast (default), smart or immediate; the data stay
#   pg.sh restart DIR [-m MODE] [--env K=V]   the same port again; immediate is a crash
#   pg.sh signal DIR SIGNAL             to all of its processes: STOP freezes the server, CONT thaws it
#   pg.sh kill9 DIR                     kill -9 to all of its processes, as when the host dies
#   pg.sh standby DIR PRIMARY_DIR [--sync] [OPTION]...   a streaming standby; --sync: the primary waits for it at COMMIT
#   pg.sh promote DIR                   makes a standby a primary
#   pg.sh drop DIR                      ends it at once and removes DIR
#   pg.sh env DIR                       TXRELAY_TEST_PG=..., PG_PID=... for eval
# Everybody on this machine may connect to it as superuser: for tests on loopback only. fsync is on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"

# Which programs: those that came with the cluster, those of --version, or the distribution's newest.
pick_programs() {
  if [ -n "$version" ]; then
    fetch "$version"
    programs=$dir/programs
    # Another user may run them, who cannot look into ours's home.
    mkdir -p "$dir" && cp -a "$fetched" "$programs" && chmod -R a+rX "$programs"
  fi
  if [ -d "$dir/programs" ]; then
    bin=$dir/programs/bin
  else
    bin=$(find /usr/lib/postgresql -mindepth 3 -maxdepth 3 -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
    bin=${bin%/initdb}
  fi
  [ -n "$bin" ] || die "no PostgreSQL server in /usr/lib/postgresql/*/bin: run tests/bed/setup.sh"
  # Maven's have the server only.
  isready=$bin/pg_isready
  [ -x "$isready" ] || isready=$(command -v pg_isready) || die "no pg_isready: run tests/bed/setup.sh"
}
fetch() { # VERSION -> folder in $fetched
  fetched=$(cache_dir)/postgresql/$1
  [ ! -d "$fetched" ] || return 0
  have mvn || die "no mvn: run tests/bed/setup.sh"
  local tmp machine=amd64
  [ "$(uname -m)" != aarch64 ] || machine=arm64v8
  mkdir -p "${fetched%/*}"
  tmp=$(mktemp -d "$fetched.XXXXXX")
  # Whole or not at all: another run may be looking for it. In a folder of its own, for the plugin leaves its markers where it stands.
  # shellcheck disable=SC2015 # whatever fails, the next line finds out
  (cd "$tmp" && mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:unpack "-DoutputDirectory=$tmp" \
    "-Dartifact=io.zonky.test.postgres:embedded-postgres-binaries-linux-$machine:$1") >"$tmp.log" 2>&1 \
    && mkdir "$tmp/programs" && tar -xJf "$tmp"/postgres-linux-*.txz -C "$tmp/programs" 2>>"$tmp.log" \
    && mv -T "$tmp/programs" "$fetched" 2>>"$tmp.log" || true
  [ -d "$fetched" ] || { tail -n 20 "$tmp.log" >&2; die "failed to get PostgreSQL $1"; }
  rm -rf "$tmp" "$tmp.log"
}

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

# The folder, writable for the owner, and a port.
prepare() {
  port=$(free_port)
  mkdir -p "$dir"
  if [ "$(id -u)" = 0 ]; then
    chown "$owner" "$dir"
    as_owner test -x "$dir" || die "$dir: user $owner cannot reach it; the folders above need mode 711 or more"
  fi
  chmod 700 "$dir"
}
create() {
  prepare
  as_owner "$bin/initdb" --no-sync --auth=trust --username=postgres --encoding=UTF8 --no-locale \
    ${tmpfs:+--wal-segsize=1} -D "$dir/data" >"$dir/initdb.log" 2>&1 || { cat "$dir/initdb.log" >&2; die "initdb failed"; }
  configure
  write_sets
  [ -z "$tmpfs" ] || move_to_tmpfs
  printf '%s\n' "$port" >"$dir/port"
}
# What a later line says holds: a standby's file begins as a copy of its primary's.
configure() {
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
}
# A mount namespace of its own keeps the tmpfs out of everybody's sight, and ends with its last process: a sleeper holds it
# across restarts of the server. Without root it is a user namespace as well, in which one is root.
move_to_tmpfs() {
  local names=(-m) n=0
  [ "$(id -u)" = 0 ] || names=(-U -r -m)
  mv "$dir/data" "$dir/seed"
  as_owner mkdir "$dir/data"
  chmod 700 "$dir/data"
  # shellcheck disable=SC2016 # expands in the inner shell
  spawn "$dir/mount.pid" "$dir/mount.log" unshare "${names[@]}" sh -ec '
    mount -t tmpfs -o "size=$2,mode=700" tmpfs "$1/data"
    cp -a "$1/seed/." "$1/data/"
    chown --reference="$1/seed" "$1/data"
    touch "$1/mounted"
    exec sleep infinity' sh "$dir" "$tmpfs"
  until [ -e "$dir/mounted" ]; do
    pid_of "$dir/mount.pid" >/dev/null || { cat "$dir/mount.log" >&2; die "no tmpfs of $tmpfs"; }
    n=$((n + 1))
    [ "$n" -le 600 ] || die "no tmpfs of $tmpfs after 30 s"
    sleep 0.05
  done
  rm -rf "$dir/seed"
}
start() {
  local n=0 pid enter=() become=() environment=()
  [ ! -e "$dir/server.pid" ] || ! pid_of "$dir/server.pid" >/dev/null || return 0
  touch "$dir/log"
  [ ! -e "$dir/environment" ] || mapfile -t environment <"$dir/environment"
  # Each of these replaces itself by the next, so that the pid is the server's.
  if [ "$(id -u)" = 0 ]; then
    [ ! -e "$dir/mounted" ] || enter=(nsenter -m -t "$(pid_of "$dir/mount.pid")")
    become=(setpriv --reuid="$owner" --regid="$(id -g "$owner")" --clear-groups --no-new-privs)
  elif [ -e "$dir/mounted" ]; then
    # PostgreSQL refuses to run as the root of the sleeper's namespace too.
    enter=(nsenter -U -m --preserve-credentials -t "$(pid_of "$dir/mount.pid")")
    become=(unshare -U --map-user="$(id -u)" --map-group="$(id -g)")
  fi
  spawn "$dir/server.pid" "$dir/log" ${enter[@]+"${enter[@]}"} ${become[@]+"${become[@]}"} \
    env ${environment[@]+"${environment[@]}"} "$bin/postgres" -D "$dir/data"
  until "$isready" -q -h 127.0.0.1 -p "$port"; do
    pid=$(pid_of "$dir/server.pid") || { tail -n 15 "$dir/log" >&2; die "PostgreSQL did not start, see $dir/log"; }
    n=$((n + 1))
    [ "$n" -le 1200 ] || die "PostgreSQL (pid $pid) not ready after 60 s, see $dir/log"
    sleep 0.05
  done
}
# The first process and all of its children.
processes() {
  local first stat
  first=$(pid_of "$dir/server.pid") || die "$dir: the server does not run"
  printf '%s\n' "$first"
  for stat in /proc/[0-9]*/stat; do
    { read -r stat <"$stat"; } 2>/dev/null || continue
    # pid (name) state parent
    [[ $stat =~ ^([0-9]+)\ .*\)\ [A-Z]\ ${first}\  ]] && printf '%s\n' "${BASH_REMATCH[1]}"
  done
  return 0
}
# One that has just ended needs no signal. Stopped first, the first process cannot make another child meanwhile.
signal_all() { # SIGNAL
  local pids pid
  mapfile -t pids < <(processes)
  [ "${#pids[@]}" -gt 0 ] || exit 1
  for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
kill9() {
  local pids pid n=0
  signal_all STOP
  mapfile -t pids < <(processes)
  for pid in "${pids[@]}"; do kill -s KILL "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do
    # Until each is gone and reaped: a new server looks for the old one's pid, and for backends that hold its memory.
    while [ -e "/proc/$pid" ]; do
      n=$((n + 1))
      [ "$n" -le 400 ] || die "process $pid does not end"
      sleep 0.05
    done
  done
  rm -f "$dir/server.pid"
}
standby() {
  local primary n=0
  read -r primary <"$primary_dir/port"
  prepare
  as_owner "$bin/pg_basebackup" --no-sync --checkpoint=fast --wal-method=stream --write-recovery-conf -h 127.0.0.1 -p "$primary" \
    -U postgres -D "$dir/data" >"$dir/initdb.log" 2>&1 || { cat "$dir/initdb.log" >&2; die "pg_basebackup failed"; }
  configure
  write_sets
  printf '%s\n' "$port" >"$dir/port"
  start
  on_primary() { psql -X -q -At "postgresql://postgres@127.0.0.1:$primary/postgres" -c "$1"; }
  if [ "$sync" = yes ]; then
    on_primary "alter system set synchronous_standby_names = '*'"
    on_primary "select pg_reload_conf()" >/dev/null
  fi
  until [ "$(on_primary "select count(*) from pg_stat_replication where state = 'streaming' and (sync_state = 'sync' or '$sync' = 'no')")" -gt 0 ]; do
    n=$((n + 1))
    [ "$n" -le 600 ] || { tail -n 15 "$dir/log" >&2; die "the standby does not stream after 30 s"; }
    sleep 0.05
  done
}
drop() {
  ! pid_of "$dir/server.pid" >/dev/null || kill9
  end "$dir/mount.pid" KILL
  rm -rf "$dir"
}
write_sets() {
  local set
  for set in ${sets[@]+"${sets[@]}"}; do printf "%s = '%s'\n" "${set%%=*}" "${set#*=}" >>"$dir/data/postgresql.conf"; done
}
stop() {
  ! pid_of "$dir/server.pid" >/dev/null || signal_all CONT # one that is frozen would never hear of it
  case $mode in
    smart) end "$dir/server.pid" TERM 60 ;;
    fast) end "$dir/server.pid" INT 60 ;;
    immediate) end "$dir/server.pid" QUIT 20 ;;
    *) die "unknown mode $mode" ;;
  esac
}

cmd=${1:-help}
case $cmd in
  up | down | restart | signal | kill9 | standby | promote | drop | env) ;;
  *) sed -n '2,19s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
dir=${2:?folder}
shift 2
case $cmd in
  signal) signal=${1:?signal}; shift ;;
  standby) primary_dir=${1:?folder of the primary}; shift ;;
esac
mode=fast sets=() environment=() tmpfs='' sync=no version=''
while [ $# -gt 0 ]; do
  case $1 in
    -m) mode=${2:?mode}; shift 2 ;;
    --version) version=${2:?version}; shift 2 ;;
    --set) sets+=("${2:?k=v}"); shift 2 ;;
    --env) environment+=("${2:?K=V}"); shift 2 ;;
    --tmpfs) tmpfs=${2:?size}; shift 2 ;;
    --sync) sync=yes; shift ;;
    *) die "unknown option $1" ;;
  esac
done
pick_owner
[ "${dir#/}" != "$dir" ] || dir=$PWD/$dir
[ -z "$version" ] || [ ! -s "$dir/port" ] || die "$dir holds a cluster already: --version is for its creation"
pick_programs
# A later value of a name wins, as `env` has it.
[ "${#environment[@]}" = 0 ] || { mkdir -p "$dir" && printf '%s\n' "${environment[@]}" >>"$dir/environment"; }
if [ "$cmd" = standby ]; then
  [ ! -s "$dir/port" ] || die "$dir holds a cluster already"
  standby
  dsn
  exit
fi
if [ "$cmd" = up ]; then
  if [ ! -s "$dir/port" ]; then
    create
  else
    [ ! -e "$dir/mounted" ] || [ "${#sets[@]}" = 0 ] || die "$dir: --set is for the creation, when its data are on a tmpfs"
    write_sets
  fi
fi
[ -s "$dir/port" ] || die "$dir holds no cluster; run pg.sh up first"
read -r port <"$dir/port"
case $cmd in
  up)
    start
    dsn
    ;;
  down) stop ;;
  restart) stop; start; dsn ;;
  signal) signal_all "$signal" ;;
  kill9) kill9 ;;
  promote) as_owner "$bin/pg_ctl" promote -s -w -t 60 -D "$dir/data" ;;
  drop) drop ;;
  env) printf 'TXRELAY_TEST_PG=%s\nPG_PID=%s\n' "$(dsn)" "$(pid_of "$dir/server.pid" || true)" ;;
esac
