# shellcheck shell=bash
# What the scripts of the bed share: words to the user, free ports, and processes that are ended by the pid they were
# started with and by nothing else. Sourced, never run.

say() { printf '%s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
cache_dir() { printf '%s\n' "${TXRELAY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/txrelay}"; }

cargo_target() { printf '%s\n' "${CARGO_TARGET_DIR:-$(cache_dir)/target}"; }

# step TEXT CMD...: runs CMD and says how long it took. Its output is kept back and shown only when it fails.
step() {
  local text=$1 began=${EPOCHREALTIME/[.,]/} out status=0
  shift
  out=$(mktemp)
  "$@" >"$out" 2>&1 || status=$?
  if [ "$status" -eq 0 ]; then
    took "$text" "$began"
  else
    printf '  %-46s failed:\n' "$text" >&2
    tail -n 40 "$out" >&2
  fi
  rm -f "$out"
  return "$status"
}
# took TEXT MICROSECONDS: ends a step that began then.
took() {
  local ms=$(((${EPOCHREALTIME/[.,]/} - $2) / 1000))
  printf '  %-46s %4d.%d s\n' "$1" "$((ms / 1000))" "$((ms % 1000 / 100))" >&2
}

# A pid alone may belong to somebody else by the time we use it; with its start time (clock ticks since boot) it cannot.
# Prints nothing for a process that is gone or only waits to be reaped.
start_time() { # PID
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  stat=${stat##*) } # the name may contain blanks and brackets
  # shellcheck disable=SC2086 # the fields are words
  set -- $stat
  [ "$1" != Z ] && [ "$1" != X ] && printf '%s\n' "${20}"
}
note_pid() { # PIDFILE PID
  local began
  began=$(start_time "$2") || return 1
  printf '%s %s\n' "$2" "$began" >"$1"
}
# The pid in PIDFILE, if that very process still runs.
pid_of() { # PIDFILE
  local pid began
  { read -r pid began <"$1"; } 2>/dev/null || return 1
  [ -n "$began" ] && [ "$(start_time "$pid")" = "$began" ] && printf '%s\n' "$pid"
}
# Ends the process of PIDFILE: SIGNAL, and KILL when it is still there after SECONDS.
end() { # PIDFILE [SIGNAL [SECONDS]]
  local pid n=0 limit=$((${3:-20} * 20))
  if pid=$(pid_of "$1"); then
    kill -s CONT "$pid" 2>/dev/null || true
    kill -s "${2:-TERM}" "$pid" 2>/dev/null || true
    while pid_of "$1" >/dev/null; do
      n=$((n + 1))
      if [ "$n" -gt "$limit" ]; then
        say "${0##*/}: $1: still running after ${3:-20} s, killed"
        kill -s KILL "$pid" 2>/dev/null || true
        limit=$((n + 200))
      fi
      sleep 0.05
    done
  fi
  rm -f "$1"
}
# Starts CMD in a session of its own, so that Ctrl-C reaches it only through us and in our order.
spawn() { # PIDFILE LOG CMD...
  local file=$1 log=$2 pid
  shift 2
  setsid "$@" >>"$log" 2>&1 </dev/null &
  pid=$!
  disown "$pid" 2>/dev/null || true # no "Killed" line from the shell when we kill it on purpose
  note_pid "$file" "$pid" || { tail -n 20 "$log" >&2; die "$1 ended at once"; }
}

# A port on which nothing listens and which no connection uses. Below the range that the kernel gives to clients, so that
# nobody is given it between now and its use.
free_port() {
  local port hex
  while :; do
    port=$((20000 + RANDOM % 10000))
    printf -v hex '%04X' "$port"
    grep -qi "^ *[0-9]*: [0-9A-F]*:$hex " /proc/net/tcp /proc/net/tcp6 2>/dev/null || break
  done
  printf '%s\n' "$port"
}
