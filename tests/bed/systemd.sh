#!/usr/bin/env bash
# systemd.sh BINARY: boots a real systemd in a container, installs a package of BINARY there, and checks what systemd makes of it,
# up to the package's upgrade, removal and purge. TAP on stdout, 1 when a check fails. Needs root and a cgroup v2 that can be
# mounted, and says so where they are missing. The root file system is made once and kept in the cache; what happens in the
# container happens in an overlay on it. Nothing is left on the host: the container has cgroups, mounts, processes and a network
# of its own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"

binary=${1:?which binary?}
[ -x "$binary" ] || die "$binary is not there: build it first"
binary=$(readlink -f "$binary")
[ "$(id -u)" = 0 ] || die "needs root: it mounts, and boots a systemd (sudo make test-systemd)"
for tool in systemd-nspawn mmdebstrap nsenter unshare pgrep findmnt dh; do
  have "$tool" || die "there is no $tool: run tests/bed/setup.sh --systemd"
done

# The distribution of this machine, or a later one whose libraries the binary can use, for another systemd (SYSTEMD_SUITE=trixie).
host=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
suite=${SYSTEMD_SUITE:-$host}
[ -n "$suite" ] || die "this distribution has no code name in /etc/os-release, and mmdebstrap needs one"
case $suite in
  bookworm | jammy) ssl=libssl3 ;;
  *) ssl=libssl3t64 ;;
esac
base=$(cache_dir)/systemd-root/$suite
if [ ! -e "$base.done" ]; then
  say "Making a root file system of $suite for the container (kept in $(cache_dir)/systemd-root)"
  rm -rf "$base"
  mkdir -p "$base"
  # From where this machine's own packages come; of another distribution mmdebstrap knows where they are.
  mirror=()
  [ "$suite" != "$host" ] || for list in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    if [ -s "$list" ]; then mirror+=("$list"); fi
  done
  step "mmdebstrap" mmdebstrap --variant=minbase --include="systemd,systemd-sysv,dbus,$ssl,zlib1g,procps" \
    "$suite" "$base" ${mirror[@]+"${mirror[@]}"} || { rm -rf "$base"; die "the root file system could not be made"; }
  touch "$base.done"
fi

if [ -z "${TXRELAY_IN_NAMESPACES:-}" ]; then
  # A cgroup of our own in the unified hierarchy, whether it is the host's only one or beside a version 1.
  unified=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
  mounted=''
  if [ -z "$unified" ]; then
    unified=$(mktemp -d)
    mount -t cgroup2 cgroup2 "$unified" 2>/dev/null || { rmdir "$unified"; die "cgroup v2 cannot be mounted here, and systemd needs it"; }
    mounted=$unified
  fi
  group=$unified/txrelay-test.$$
  inner=''
  # shellcheck disable=SC2317 # called by the trap
  leave_nothing() {
    trap '' INT TERM HUP
    if [ -n "$inner" ] && kill -s TERM "$inner" 2>/dev/null; then wait "$inner" || true; fi
    # Its processes are gone, or about to be.
    for _ in $(seq 100); do
      [ -e "$group" ] || break
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.1
    done
    if [ -n "$mounted" ]; then umount "$mounted" && rmdir "$mounted"; fi
  }
  trap leave_nothing EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  mkdir "$group" || die "no cgroup can be made in $unified"
  # In the background: a shell that waits in the foreground hears of a TERM only afterwards.
  (
    echo "$BASHPID" >"$group/cgroup.procs"
    exec env TXRELAY_IN_NAMESPACES=1 unshare --cgroup --mount --pid --fork --kill-child --mount-proc --propagation private \
      "$here/systemd.sh" "$binary"
  ) &
  inner=$!
  status=0
  wait "$inner" || status=$?
  inner=''
  exit "$status"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/txrelay-systemd.XXXXXX")
mkdir "$work/over" "$work/root"
container='' leader=''
guest() { # SCRIPT: in the container
  nsenter -t "$leader" -a env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 bash -c "$prelude$1"
}
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  if [ -n "$leader" ]; then guest 'systemctl poweroff' >/dev/null 2>&1 || true; fi
  if [ -n "$container" ]; then
    for _ in $(seq 200); do kill -0 "$container" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$container" 2>/dev/null || true
    wait "$container" 2>/dev/null || true
  fi
  umount "$work/root" "$work/over" 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# An overlay cannot lie on another one, which /tmp may be.
mount -t tmpfs tmpfs "$work/over"
mkdir "$work/over/upper" "$work/over/work"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/over/upper,workdir=$work/over/work" "$work/root"
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup || die "cgroup v2 cannot be mounted here, and systemd needs it"
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd

# Two releases of it, the first one made smaller: nobody looks for its symbols.
strip -o "$work/txrelay" "$binary"
for release in 0 1; do
  step "make deb, release $release" env DPKG_DEB_COMPRESSOR_LEVEL=1 make -s -C "$here/../.." deb BINARY="$work/txrelay" DEST="$work/deb$release" DEB_VERSION="0.0.$release"
  cp "$work/deb$release"/txrelay_*.deb "$work/root/srv/$release.deb"
done

# What the scripts in the container share. No PostgreSQL, no Kafka: it waits for them.
# shellcheck disable=SC2016 # expanded in the container
prelude='unit=txrelay@demo.service
p() { systemctl show -P "$1" "$unit"; }
status() { cat "/proc/$(p MainPID)/status"; }
soon() { for _ in $(seq 600); do if "$@"; then return 0; fi; sleep 0.1; done; echo "in vain: $*"; return 1; }
said() { journalctl -b -u "$unit" -o cat --no-pager "${@:2}" | grep -q -- "$1"; }
active() { [ "$(p ActiveState):$(p SubState)" = active:running ]; }
state() { [ "$(p ActiveState)" = "$1" ]; }
restarted() { [ "$(p NRestarts)" = "$1" ] && active; }
good() { install -m 640 -o root -g txrelay /srv/good.toml /etc/txrelay/demo.toml; }
'
cat >"$work/root/srv/good.toml" <<'TOML'
kafka.brokers = ["127.0.0.1:1"]
kafka.topics = ["payments"]
postgres.url = "postgresql://txrelay@127.0.0.1:1/txrelay"
postgres.password_file = "${CREDENTIALS_DIRECTORY}/postgres"
downstream.url = "http://127.0.0.1:2/"
TOML

systemd-nspawn --quiet --boot --directory="$work/root" --register=no --keep-unit --private-network --link-journal=no \
  --console=pipe --machine=txrelay-test </dev/null >"$work/console" 2>&1 &
container=$!
for _ in $(seq 1200); do
  leader=$(pgrep -P "$container" -x systemd || true)
  if [ -n "$leader" ] && nsenter -t "$leader" -a test -S /run/systemd/private 2>/dev/null; then break; fi
  kill -0 "$container" 2>/dev/null || { leader=''; break; }
  sleep 0.1
done
if [ -z "$leader" ]; then
  tail -n 20 "$work/console" >&2
  die "systemd did not come up in the container"
fi

n=0 bad=0
ok() { # NAME SCRIPT
  local out
  n=$((n + 1))
  if out=$(guest "$2" 2>&1); then
    printf 'ok %d - %s\n' "$n" "$1"
  else
    bad=$((bad + 1))
    printf 'not ok %d - %s\n' "$n" "$1"
    printf '%s\n' "$out" | tail -n 12 | sed 's/^/# /'
    # shellcheck disable=SC2016
    guest 'journalctl -b -u "$unit" --no-pager | tail -n 25' 2>&1 | sed 's/^/#   /' || true
  fi
}

# shellcheck disable=SC2016 # everything below is expanded in the container
checks() {
  ok 'the container boots' 'systemctl is-system-running --wait >/dev/null || [ "$(systemctl is-system-running)" = degraded ]'
  printf '# %s\n' "$(guest 'systemctl --version | head -n 1')"
  ok 'the package installs, and starts and enables nothing' '
    dpkg -i /srv/0.deb && [ -z "$(systemctl list-units --no-legend "txrelay@*")" ] && ! ls /etc/systemd/system/*.wants/txrelay@*'
  ok 'its user is made, without a shell' 'getent passwd txrelay | grep -q nologin'
  ok 'its one configuration file is the example' '[ "$(dpkg-query -W -f "\${Conffiles}" txrelay | awk "NF { print \$1 }")" = /etc/txrelay/txrelay.toml.example ]'
  ok 'the command is there, with its manual and documents' '
    txrelay --version && dpkg -L txrelay | grep -qx /usr/share/man/man5/txrelay.toml.5.gz && dpkg -L txrelay | grep -qx /usr/share/doc/txrelay/security.md'
  ok 'the unit verifies' 'out=$(systemd-analyze verify --man=no "$unit" 2>&1); echo "$out"; [ -z "$out" ]'
  ok 'its exposure is at most 1.2' 'systemd-analyze security --threshold=12 "$unit"'
  ok 'it starts, with a secret that only root can read' '
    mkdir -p /etc/txrelay/secrets "/etc/systemd/system/$unit.d"
    (umask 077; echo hunter2 >/etc/txrelay/secrets/demo.postgres)
    printf "[Service]\nLoadCredential=postgres:/etc/txrelay/secrets/%%i.postgres\n" >"/etc/systemd/system/$unit.d/secrets.conf"
    good; systemctl daemon-reload; systemctl start "$unit" && active'
  ok 'STATUS says what it waits for' 'w() { p StatusText | grep -q "waiting: .*PostgreSQL"; }; soon w'
  ok 'it runs as its user, without capabilities, with seccomp' '
    status | grep -q "^Uid:[[:space:]]*$(id -u txrelay)" && status | grep -q "^CapBnd:.*0000000000000000" &&
    status | grep -q "^CapEff:.*0000000000000000" && status | grep -q "^Seccomp:.*2" && status | grep -q "^NoNewPrivs:.*1"'
  ok 'it dumps no core' 'grep -q "^Max core file size  *0  *0 " "/proc/$(p MainPID)/limits"'
  ok 'it has a state file of its own' '[ "$(stat -c %U:%a /var/lib/txrelay/demo)" = txrelay:700 ] && [ -s /var/lib/txrelay/demo/instance ]'
  ok 'it may bound the connections to its port' '
    for _ in $(seq 80); do exec {fd}<>/dev/tcp/127.0.0.1/19470; done
    few() { [ "$(grep -ci ":4C0E .* 01 " /proc/net/tcp)" -le $((2 * 64)) ]; }
    soon few'
  ok '/metrics and /livez answer' '
    get() { exec 3<>/dev/tcp/127.0.0.1/19470; printf "GET %s HTTP/1.0\r\n\r\n" "$1" >&3; cat <&3; }
    get /metrics | grep -q txrelay_build_info && get /livez | grep -q "threads ok"'
  ok 'priorities in the journal are right' '
    prio() { journalctl -b -u "$unit" -o json --no-pager --output-fields=PRIORITY,MESSAGE,TARGET | grep TARGET | grep -- "$1" | grep -q "\"PRIORITY\":\"$2\""; }
    prio "relays payments" 6 && soon prio "waiting for PostgreSQL" 4 && ! prio "relays payments" 5'
  ok 'a good reload is taken' '
    { cat /srv/good.toml; echo "log.level = \"debug\""; } >/etc/txrelay/demo.toml
    pid=$(p MainPID); systemctl reload "$unit" && soon said "configuration reloaded: changed log.level" && [ "$pid" = "$(p MainPID)" ] && soon active'
  ok 'a wrong file is refused by systemctl reload, and the process stays' '
    { cat /srv/good.toml; echo "log.levl = \"debug\""; } >/etc/txrelay/demo.toml
    pid=$(p MainPID); ! systemctl reload "$unit" && active && [ "$pid" = "$(p MainPID)" ] && said "demo.toml:6:.*log.levl"'
  ok 'a key that needs a restart is refused by the process, at error' '
    { cat /srv/good.toml; echo "downstream.workers = 3"; } >/etc/txrelay/demo.toml
    systemctl reload "$unit"; soon said "only a restart can change downstream.workers" -p err && ! said "relays payments" -p err && soon active'
  ok 'a wrong file at the start: 78, and no restart' '
    { cat /srv/good.toml; echo "log.levl = \"debug\""; } >/etc/txrelay/demo.toml
    ! systemctl restart "$unit"; sleep 4
    [ "$(p ExecMainStatus):$(p NRestarts):$(p ActiveState)" = 78:0:failed ]; result=$?
    good; systemctl reset-failed "$unit"; systemctl start "$unit"; exit $result'
  ok 'killed, it is started again, once' 'kill -KILL "$(p MainPID)"; soon restarted 1; sleep 3; restarted 1'
  ok 'hung, the watchdog ends it and it is started again' '
    mkdir -p "/run/systemd/system/$unit.d"; printf "[Service]\nWatchdogSec=3\nTimeoutAbortSec=2\n" >"/run/systemd/system/$unit.d/watchdog.conf"
    systemctl daemon-reload; systemctl reset-failed "$unit"; systemctl restart "$unit"; sleep 5; active && [ "$(p NRestarts)" = 0 ] || exit 1
    kill -STOP "$(p MainPID)"; soon said "Failed with result .watchdog." && soon restarted 1
    result=$?; rm "/run/systemd/system/$unit.d/watchdog.conf"; systemctl daemon-reload; exit $result'
  ok 'a missing credential stops the start before it runs' '
    mv /etc/txrelay/secrets/demo.postgres /srv/; systemctl stop "$unit"; ! timeout 20 systemctl start "$unit"; systemctl stop "$unit"
    mv /srv/demo.postgres /etc/txrelay/secrets/; systemctl reset-failed "$unit"; systemctl start "$unit" && active'
  ok 'an upgrade starts again what runs, and only that, and keeps what people wrote' '
    echo "# mine" >>/etc/txrelay/txrelay.toml.example; id=$(cat /var/lib/txrelay/demo/instance); pid=$(p MainPID)
    good && cp -p /etc/txrelay/demo.toml /etc/txrelay/other.toml && systemctl enable "$unit" txrelay@other.service
    dpkg -i /srv/1.deb && soon active && [ "$pid" != "$(p MainPID)" ] && [ "$(dpkg-query -W -f "\${Version}" txrelay)" = 0.0.1 ] &&
    ! systemctl is-active txrelay@other.service && grep -q "# mine" /etc/txrelay/txrelay.toml.example &&
    [ "$id" = "$(cat /var/lib/txrelay/demo/instance)" ]'
  ok 'a clean stop is a success' 'systemctl stop "$unit" && [ "$(p Result):$(p ExecMainStatus):$(p ActiveState)" = success:0:inactive ]'
  ok 'a removal stops it in order, and keeps its files and its state' '
    systemctl start "$unit" && active && pid=$(p MainPID) && dpkg -r txrelay && ! [ -e "/proc/$pid" ] && ! [ -e /usr/bin/txrelay ] &&
    [ -s /etc/txrelay/demo.toml ] && [ -s /etc/txrelay/txrelay.toml.example ] && [ -s /var/lib/txrelay/demo/instance ] &&
    journalctl -b -u "$unit" -o cat --no-pager | tail -n 5 | grep -q "Deactivated successfully"'
  ok 'installed once more it has its old name' '
    id=$(cat /var/lib/txrelay/demo/instance); dpkg -i /srv/1.deb && ! active && systemctl start "$unit" && soon active &&
    [ "$id" = "$(cat /var/lib/txrelay/demo/instance)" ]'
  ok 'a purge leaves what people wrote, and nothing else' '
    dpkg -P txrelay && ! active && ! [ -e /var/lib/txrelay ] && ! ls /etc/systemd/system/*.wants/txrelay@* &&
    [ "$(find /etc/txrelay -type f | sort | tr "\n" " ")" = "/etc/txrelay/demo.toml /etc/txrelay/other.toml /etc/txrelay/secrets/demo.postgres " ] &&
    ! find /usr -name "*txrelay*" | grep .'
  ok 'no secret is in the journal' '! journalctl -b --no-pager | grep -v COMMAND | grep -q hunter2'
}
checks
printf '1..%d\n' "$n"
[ "$bad" = 0 ]
