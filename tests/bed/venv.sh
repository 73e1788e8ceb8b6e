#!/usr/bin/env bash
# venv.sh NAME==VERSION...: a Python environment of the cache with these packages, and prints its folder. Nothing of the system's
# Python is touched.
#   "$(tests/bed/venv.sh standardwebhooks==1.1.0)/bin/python" -c 'import standardwebhooks'
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"

[ $# -gt 0 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2; }
have python3 || die "there is no python3 here"

folder=$(cache_dir)/venv/$(IFS=+; printf '%s' "$*")
if [ ! -d "$folder" ]; then
  mkdir -p "$(cache_dir)/venv"
  # Tests run in parallel: one fetches, the others wait for it.
  exec 9>"$folder.lock"
  flock 9
fi
if [ ! -d "$folder" ]; then
  # Made beside its place: half an environment must not look like a whole one. Only bin/python is used, which works after a move.
  work=$(mktemp -d "$folder.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  step "python3 -m venv" python3 -m venv "$work/venv" || die "python3 cannot make an environment: is python3-venv installed?"
  step "pip install $*" "$work/venv/bin/python" -m pip install --disable-pip-version-check -q "$@" || die "cannot be had: $*"
  mv "$work/venv" "$folder"
fi
printf '%s\n' "$folder"
