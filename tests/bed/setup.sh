#!/usr/bin/env bash
# setup.sh [--lint|--systemd|--deb]: installs what building and the bed need on Debian or Ubuntu, and says what before it does. Quick when all
# is there. It starts and reconfigures nothing of the system; in particular Debian's packages make no PostgreSQL cluster.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"

root=()
if [ "$(id -u)" != 0 ]; then root=(sudo); fi

packages=()
need() { packages+=("$1"); }
available() { apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [0-9]'; }
java_version() { java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1; }

have cc || need gcc
have c++ || need g++ # librdkafka's build asks for it
have make || need make
have pkg-config || need pkg-config
{ have pkg-config && pkg-config --exists openssl; } || need libssl-dev
{ have pkg-config && pkg-config --exists zlib; } || need zlib1g-dev
{ have java && [ "$(java_version)" -ge 17 ]; } || need java
have mvn || need maven
[ -n "$(find /usr/lib/postgresql -mindepth 3 -maxdepth 3 -path '*/bin/initdb' 2>/dev/null)" ] || need postgresql
have psql || need postgresql-client
have xz || need xz-utils # PostgreSQL's other versions
{ have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; } || need python3-venv # a signature is verified by another language's library
{ have setpriv && have setsid && have prlimit; } || need util-linux
{ [ -x /bin/kill ] && have pgrep; } || need procps # the shell has a kill of its own; a unit and the tests need the program
have man || need man-db # the manual pages are held against it
have systemd-analyze || need systemd # it is not started; tests hold the unit against it
[ "${1:-}" != --lint ] || have shellcheck || need shellcheck
if [ "${1:-}" = --systemd ] || [ "${1:-}" = --deb ]; then
  have dh || need debhelper # the package is made with it
fi
if [ "${1:-}" = --systemd ]; then
  have systemd-nspawn || need systemd-container
  have mmdebstrap || need mmdebstrap
  have nsenter || need util-linux
fi

if [ "${#packages[@]}" -gt 0 ]; then
  have apt-get || die "missing: ${packages[*]} (Debian's names), and there is no apt-get here to install them"
  [ "${#root[@]}" = 0 ] || have sudo || die "missing: ${packages[*]}; run as root: apt-get install ${packages[*]}"
  say "Installing Debian packages: ${packages[*]}"
  # Otherwise postgresql's own installation makes a cluster and starts it. What is there already stays as it is.
  if [[ " ${packages[*]} " == *" postgresql "* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    say "  with /etc/postgresql-common/createcluster.conf: create_main_cluster = false (no cluster is made or started)"
    "${root[@]}" mkdir -p /etc/postgresql-common
    printf 'create_main_cluster = false\n' | "${root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  quiet() { "${root[@]}" env DEBIAN_FRONTEND=noninteractive "$@"; }
  step "apt-get update" quiet apt-get -q update
  # The distribution's default may be too old (11 on Ubuntu 22.04).
  for i in "${!packages[@]}"; do
    [ "${packages[$i]}" = java ] || continue
    packages[i]=default-jre-headless
    for v in 21 17 25; do
      if available "openjdk-$v-jre-headless"; then packages[i]=openjdk-$v-jre-headless && break; fi
    done
  done
  step "apt-get install" quiet apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-confold install "${packages[@]}"
  if have java && [ "$(java_version)" -lt 17 ]; then die "this distribution's Java is $(java_version); Kafka needs 17 or newer"; fi
fi

# For the tests alone, so a machine without it can still build, run the demo and the benches.
"$here/venv.sh" standardwebhooks==1.1.0 >/dev/null || say "Note: without PyPI's package standardwebhooks a test will fail"
"$here/debs.sh" prometheus >/dev/null || say "Note: without Debian's package prometheus there is no promtool, and a test will fail"

if ! have cargo; then
  if [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  elif available rustup; then
    say "Installing Debian package: rustup"
    step "apt-get install rustup" "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install rustup
  else
    die "no cargo, and this distribution has no package rustup: install Rust with rustup, then run this again"
  fi
fi
channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$here/../../rust-toolchain.toml")
if have rustup; then
  if ! rustup toolchain list | grep -q "^$channel-"; then
    say "Installing the Rust toolchain $channel of rust-toolchain.toml"
    step "rustup toolchain install $channel" rustup toolchain install "$channel" --profile minimal --component rustfmt --component clippy \
      || die "Rust $channel cannot be had from here: install it by other means, or remove rust-toolchain.toml to try another one"
  fi
elif [ "$(cd "$here" && rustc --version | cut -d ' ' -f 2)" != "$channel" ]; then
  say "Note: Rust is $(rustc --version | cut -d ' ' -f 2), not the $channel of rust-toolchain.toml, and there is no rustup to get it"
fi

# Clones share the folder of what was built, and cargo tells sources by their age alone: those of a clone that is older than
# the other's build would pass for built.
target=$(cargo_target)
clone=$(cd "$here/../.." && pwd)
if [ "$(cat "$target/clone" 2>/dev/null)" != "$clone" ] && [ -w "$clone/src" ]; then
  mkdir -p "$target"
  printf '%s\n' "$clone" >"$target/clone"
  find "$clone/src" "$clone/tests" -name '*.rs' -exec touch {} +
fi
