#!/usr/bin/env bash
# One Apache Kafka broker (KRaft, broker and controller in one process) in DIR on free loopback ports.
#   kafka.sh up DIR [--version V] [--set k=v]... [--join OTHER]
#                                                    gets the jars if needed, starts, prints the bootstrap address;
#                                                    --join: one more broker of the cluster whose first is in OTHER
#     [--listener NAME:PROTOCOL]...                  more ports (SSL, SASL_SSL, SASL_PLAINTEXT), advertised as localhost:PORT
#     [--user NAME=PASSWORD]                         for the SASL ports: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
#   kafka.sh down DIR                                stops it; the data stay
#   kafka.sh kill9 DIR                               kill -9
#   kafka.sh start DIR                               the same broker again, same ports, same data
#   kafka.sh env DIR                                 TXRELAY_TEST_KAFKA=..., KAFKA_PID=..., LISTENER_NAME=... for eval
#   kafka.sh tool DIR CLASS ARGS...                  a console tool (org.apache.kafka.tools.TopicCommand ...) from the same jars
#   kafka.sh fetch [VERSION]                         only the jars
# Jars are kept in ${TXRELAY_CACHE:-~/.cache/txrelay}/kafka/VERSION. Tried: 4.3.1, 3.9.2.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/bed/lib.sh
. "$here/lib.sh"
newest=4.3.1 # the newest whose kafka-tools are published

java=${JAVA_HOME:+$JAVA_HOME/bin/}java
jvm=(-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData -Xss512k -XX:MaxDirectMemorySize=64m -Djava.net.preferIPv4Stack=true
  -Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS
  -Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaConfig=warn)

fetch() { # VERSION -> folder in $libs
  libs=$(cache_dir)/kafka/$1
  [ ! -d "$libs" ] || return 0
  have mvn || die "no mvn: run tests/bed/setup.sh"
  mkdir -p "${libs%/*}"
  local tmp
  tmp=$(mktemp -d "$libs.XXXXXX")
  # Whole or not at all: another run may be looking for it.
  if mvn -q -B -f "$here/kafka-pom.xml" "-Dkafka.version=$1" org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
    -DincludeScope=runtime "-DoutputDirectory=$tmp" >"$tmp.log" 2>&1 && chmod 755 "$tmp" && mv -T "$tmp" "$libs" 2>>"$tmp.log"; then
    rm -f "$tmp.log"
  else
    [ -d "$libs" ] || tail -n 20 "$tmp.log" >&2
    rm -rf "$tmp" "$tmp.log"
    [ -d "$libs" ] || die "failed to get the jars of Kafka $1"
  fi
}
another_port() { # one that is not in $taken either
  local port
  port=$(free_port)
  while [[ " $taken " == *" $port "* ]]; do port=$(free_port); done
  taken+=" $port"
}
sasl() { # listener PROTOCOL -> lines of server.properties
  local name=${1,,}
  printf '%s\n' "listener.name.$name.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512" \
    "listener.name.$name.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_${user%%=*}=\"${user#*=}\";"
  local mechanism
  for mechanism in 256 512; do
    printf 'listener.name.%s.scram-sha-%s.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n' "$name" "$mechanism"
  done
}
configure() {
  local port controller cluster one taken='' more='' open='' map='' extra='' lines=''
  another_port; port=${taken##* }
  another_port; controller=${taken##* }
  for one in ${listeners[@]+"${listeners[@]}"}; do
    another_port
    open+=",${one%%:*}://127.0.0.1:${taken##* }"
    more+=",${one%%:*}://localhost:${taken##* }"
    map+=",${one%%:*}:${one#*:}"
    extra+="LISTENER_${one%%:*}=localhost:${taken##* } "
    [[ ${one#*:} != SASL_* ]] || lines+=$(sasl "${one%%:*}")$'\n'
  done
  local scram=()
  if [ -n "$user" ]; then
    for one in 256 512; do scram+=(--add-scram "SCRAM-SHA-$one=[name=${user%%=*},password=${user#*=}]"); done
  fi
  cluster=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d =)
  mkdir -p "$dir"
  cat >"$dir/server.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT$map
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller$open
advertised.listeners=PLAINTEXT://127.0.0.1:$port$more
log.dirs=$dir/data
auto.create.topics.enable=false
# one broker: one copy of everything
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=1
transaction.max.timeout.ms=60000
# small
num.network.threads=1
num.io.threads=2
num.recovery.threads.per.data.dir=1
background.threads=2
log.cleaner.dedupe.buffer.size=4194304
log.index.size.max.bytes=1048576
# quick: no 3 s before the first assignment, no 30 s before the first retention round, no 15 s between two of the cleaner
group.initial.rebalance.delay.ms=0
log.initial.task.delay.ms=200
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=1000
log.cleaner.backoff.ms=500
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
controller.quorum.election.timeout.ms=1000
CONF
  printf '%s' "$lines" >>"$dir/server.properties"
  [ "${#sets[@]}" = 0 ] || printf '%s\n' "${sets[@]}" >>"$dir/server.properties"
  format "$cluster" ${scram[@]+"${scram[@]}"}
}
join() { # beside the one in $other: its version, settings and cluster, no controller of its own
  local n=2 port cluster extra=''
  port=$(free_port)
  cluster=$(sed -n 's/^cluster.id=//p' "$other/data/meta.properties")
  until mkdir "$other/node-$n" 2>/dev/null; do n=$((n + 1)); done
  mkdir -p "$dir"
  sed -e "s/^process.roles=.*/process.roles=broker/" -e "s/^node.id=.*/node.id=$n/" -e "s|^log.dirs=.*|log.dirs=$dir/data|" \
    -e "s|^listeners=.*|listeners=PLAINTEXT://127.0.0.1:$port|" -e "s|^advertised.listeners=.*|advertised.listeners=PLAINTEXT://127.0.0.1:$port|" \
    "$other/server.properties" >"$dir/server.properties"
  format "$cluster"
}
format() { # CLUSTER [--add-scram ...]
  local id=$1
  shift
  timeout 60 "$java" "${jvm[@]}" -Xmx128m -cp "$libs/*" kafka.tools.StorageTool format "--cluster-id=$id" \
    "--config=$dir/server.properties" "$@" >"$dir/format.log" 2>&1 || { tail -n 20 "$dir/format.log" >&2; die "formatting failed"; }
  printf 'version=%s\nport=%s\nlisteners="%s"\n' "$version" "$port" "$extra" >"$dir/state"
}
start() {
  local n=0 pid
  ! pid_of "$dir/broker.pid" >/dev/null || return 0
  : >"$dir/log"
  spawn "$dir/broker.pid" "$dir/log" "$java" "${jvm[@]}" -Xms128m -Xmx128m -Dorg.slf4j.simpleLogger.defaultLogLevel=info \
    -cp "$libs/*" kafka.Kafka "$dir/server.properties"
  # Not the open port: it opens earlier than the broker answers.
  until grep -q 'Kafka Server started' "$dir/log"; do
    pid=$(pid_of "$dir/broker.pid") || { tail -n 15 "$dir/log" >&2; die "Kafka did not start, see $dir/log"; }
    n=$((n + 1))
    [ "$n" -le 1200 ] || die "Kafka (pid $pid) not ready after 60 s, see $dir/log"
    sleep 0.05
  done
}

cmd=${1:-help}
case $cmd in
  fetch) fetch "${2:-$newest}"; exit ;;
  up | down | kill9 | start | env | tool) ;;
  *) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
dir=${2:?folder}
shift 2
[ "${dir#/}" != "$dir" ] || dir=$PWD/$dir
version=$newest sets=() listeners=() user='' other=
if [ "$cmd" = up ]; then
  while [ $# -gt 0 ]; do
    case $1 in
      --version) version=${2:?version}; shift 2 ;;
      --join) other=${2:?folder}; shift 2 ;;
      --set) sets+=("${2:?k=v}"); shift 2 ;;
      --listener) listeners+=("${2:?NAME:PROTOCOL}"); shift 2 ;;
      --user) user=${2:?NAME=PASSWORD}; shift 2 ;;
      *) die "unknown option $1" ;;
    esac
  done
  have "$java" || die "no java: run tests/bed/setup.sh"
  if [ ! -s "$dir/state" ]; then 
    # shellcheck source=/dev/null
    [ -z "$other" ] || version=$(. "$other/state" && printf %s "$version")
    fetch "$version"
    if [ -n "$other" ]; then join; else configure; fi
  fi
fi
[ -s "$dir/state" ] || die "$dir holds no broker; run kafka.sh up first"
# shellcheck source=/dev/null
. "$dir/state"
case $cmd in
  up | start) fetch "$version"; start; printf '127.0.0.1:%s\n' "$port" ;;
  down) end "$dir/broker.pid" TERM 20 ;;
  kill9) end "$dir/broker.pid" KILL ;;
  env)
    printf 'TXRELAY_TEST_KAFKA=127.0.0.1:%s\nKAFKA_PID=%s\n' "$port" "$(pid_of "$dir/broker.pid" || true)"
    # shellcheck disable=SC2086,SC2128 # a list of words out of the state file
    [ -z "$listeners" ] || printf '%s\n' $listeners
    ;;
  tool)
    fetch "$version"
    # A tool that finds its broker dead would wait for a minute per record.
    timeout 60 "$java" "${jvm[@]}" -Xmx128m -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$libs/*" "$@"
    ;;
esac
