#!/usr/bin/env bash
# Builds the peers of `make bench-peers` into the cache, each from its own registry: River and Bento (Go), graphile-worker (npm).
# Prints the folder. Says what is missing; installs Debian's nodejs and npm, but no Go: Debian's is older than River needs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/bed/lib.sh
. "$here/../../tests/bed/lib.sh"

wanted=$(sed -n 's/^go //p' "$here/river/go.mod")
PATH=$PATH:/usr/local/go/bin
have go || die "no go: River and Bento need Go $wanted or newer (go.dev has it); or choose other contenders with BENCH_CONTENDERS"
if ! have node || ! have npm; then
  root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  say "Installing Debian packages: nodejs npm"
  step "apt-get install" "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install nodejs npm >&2
fi

home=$(cache_dir)/peers
mkdir -p "$home/bin" "$home/graphile"
# Two cores are enough to build and too few to build with all.
export GOFLAGS=-p=2
for peer in river bento; do
  (cd "$here/$peer" && step "go build $peer" go build -o "$home/bin/$peer" .)
done
cp "$here"/graphile/* "$home/graphile/"
if ! cmp -s "$here/graphile/package.json" "$home/graphile/.installed"; then
  (cd "$home/graphile" && step "npm install graphile-worker" npm install --no-audit --no-fund --no-package-lock --silent)
  cp "$here/graphile/package.json" "$home/graphile/.installed"
fi
printf '%s\n' "$home"
