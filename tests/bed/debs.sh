#!/usr/bin/env bash
# debs.sh NAME...: unpacks Debian packages, with those of the packages they need that are not installed here, into a folder of
# the cache, and prints that folder. Nothing is installed, configured or started, and no root is needed once apt has its lists.
#   "$(tests/bed/debs.sh prometheus)/usr/bin/promtool" --version
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"

[ $# -gt 0 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2; }
{ have apt-get && have dpkg; } || die "there is no apt-get here, and these are Debian's packages: $*"

folder=$(cache_dir)/debs/$(IFS=+; printf '%s' "$*")
if [ ! -d "$folder" ]; then
  mkdir -p "$(cache_dir)/debs"
  # Tests run in parallel: one fetches, the others wait for it.
  exec 9>"$folder.lock"
  flock 9
fi
if [ ! -d "$folder" ]; then
  work=$(mktemp -d "$folder.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/debs" "$work/root"
  chmod 755 "$work/root" # a server may run as another user
  # What an installation would bring, asked and not done. Words of the answer: Inst NAME (VERSION ...
  needed() { apt-get -s -q --no-install-recommends install "$@" 2>"$work/error" | sed -n 's/^Inst \([^ ]*\) .*/\1/p'; }
  update() {
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    step "apt-get update" ${root[@]+"${root[@]}"} apt-get -q update
  }
  packages=$(needed "$@") || { update && packages=$(needed "$@"); } || { cat "$work/error" >&2; die "apt does not know $*"; }
  # shellcheck disable=SC2086 # the names are words
  mapfile -t packages < <(printf '%s\n' "$@" $packages | sort -u)
  # apt drops to a user of its own for a download, and complains where that one cannot write.
  download() { cd "$work/debs" && apt-get -q -o APT::Sandbox::User="$(id -un)" download "${packages[@]}"; }
  # Lists that are too old name files that are gone.
  step "fetch ${packages[*]}" download || { update && step "fetch ${packages[*]}" download; } || die "cannot be had: $*"
  for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/root"; done
  mv "$work/root" "$folder"
fi
printf '%s\n' "$folder"
