#!/usr/bin/env bash
# MySQL 9.7 or newer for the tests, on machines whose Debian release has none. Nothing is installed: packages of Debian
# unstable are unpacked in a cache directory together with the C library that they were built for. No command needs root.
#
#   mysql97.sh fetch              fetches and unpacks the packages, once; the other commands do so by themselves
#   mysql97.sh version            prints the version of the server, such as 9.7.4
#   mysql97.sh run PORT DIR       runs a server in the foreground on 127.0.0.1:PORT; its data and its log are in DIR
#   mysql97.sh start PORT DIR     the same in the background; returns when the server takes connections
#   mysql97.sh stop DIR           stops the server that `start` started in DIR
#   mysql97.sh cli PORT [ARG...]  the command-line client, as root, who has no password
#
# The server is made for the speed of tests: it does not flush to disk and keeps no binary log, so a crash of the
# machine loses data. What decides how SQL behaves has the defaults of MySQL.
# The cache is MYSQL97_CACHE, by default .cache/mysql97 in the project. A failure is told in one line on standard error.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=$(realpath -m "${MYSQL97_CACHE:-$project/.cache/mysql97}")
oldest=9.7
patience=600

die() {
  echo "MySQL 9.7: $*" >&2
  exit 1
}

# Sets `root`, `library` and `loader` for packages that are unpacked in $1.
use() {
  root=$1
  case $(uname -m) in
  x86_64) library=$root/usr/lib/x86_64-linux-gnu loader=ld-linux-x86-64.so.2 ;;
  aarch64) library=$root/usr/lib/aarch64-linux-gnu loader=ld-linux-aarch64.so.1 ;;
  *) die "Debian has no package for a $(uname -m) that this script knows" ;;
  esac
  loader=$library/$loader
}

mysqld() { "$loader" --library-path "$library:$root/usr/lib/mysql/private" "$root/usr/sbin/mysqld" --no-defaults "$@"; }

version() { mysqld --version 2>/dev/null | grep -oP 'Ver \K[0-9.]+'; }

# ------------------------------------------------------------------ packages

fetch() {
  use "$cache/root"
  [[ ! -d $cache/root ]] || return 0
  mkdir -p "$cache" 2>/dev/null || die "cannot write to $cache"
  (
    flock 9 # one run fetches, the others wait for it
    [[ -d $cache/root ]] || fetch_into_cache
  ) 9>"$cache/lock"
}

# The unpacked packages get their final name last: what an interrupted fetch leaves behind is never used.
fetch_into_cache() {
  local scratch archive found
  for archive in apt-get dpkg-deb; do
    command -v "$archive" >/dev/null || die "$archive is not on this machine"
  done
  rm -rf "$cache"/fetch.*
  scratch=$(mktemp -d "$cache/fetch.XXXXXX")
  # shellcheck disable=SC2064 # the name of now
  trap "rm -rf '$scratch'" EXIT
  download "$scratch"
  mkdir "$scratch/root"
  for archive in "$scratch"/cache/archives/*.deb; do
    case ${archive##*/} in perl* | libperl* | gcc-*) continue ;; esac # for scripts that come with the server
    dpkg-deb -x "$archive" "$scratch/root" 2>"$scratch/dpkg.log" ||
      die "${archive##*/} cannot be unpacked: $(tail -n 1 "$scratch/dpkg.log")"
  done
  use "$scratch/root"
  found=$(version) || die "the unpacked server does not run on this machine"
  # A newer one is welcome: Debian unstable keeps no older version, and a test on it says more than no test.
  [[ $(printf '%s\n' "$oldest" "$found" | sort -V | head -n 1) == "$oldest" ]] ||
    die "Debian unstable has MySQL $found, older than $oldest"
  mv "$scratch/root" "$cache/root"
}

# Downloads the server, the client and all that they need, from the first archive that has them.
download() {
  local scratch=$1 archives archive reason
  archives=$(debian_archives)
  [[ -n $archives ]] || die "the apt sources of this machine name no Debian archive"
  mkdir -p "$scratch"/{state/lists,cache/archives,log}/partial
  : >"$scratch/status"
  apt_configuration "$scratch" >"$scratch/apt.conf"
  for archive in $archives; do
    apt_source "$archive" >"$scratch/sources.list"
    if timeout "$patience" apt-get -c "$scratch/apt.conf" -qq update >"$scratch/apt.log" 2>&1 &&
      timeout "$patience" apt-get -c "$scratch/apt.conf" -qq -y --no-install-recommends --download-only \
        install mysql-server-core mysql-client-core >>"$scratch/apt.log" 2>&1; then
      return
    fi
  done
  reason=$(grep -m 1 '^E:' "$scratch/apt.log" || true)
  die "the packages cannot be had: ${reason:-not within $patience s}"
}

# apt itself reads its sources, in whatever format they are.
debian_archives() {
  local codename
  # shellcheck disable=SC1091 # not a file of the project
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  apt-get --print-uris update 2>/dev/null |
    grep -oP "^'\K[^']+(?=/dists/(stable|testing|unstable|sid|${codename:-sid})/InRelease')" | sort -u || true
}

apt_source() {
  local keyring
  for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
    if [[ -r $keyring ]]; then
      echo "deb [arch=$(dpkg --print-architecture) signed-by=$keyring target=Packages] $1 sid main"
      return
    fi
  done
  die "the keys of the Debian archive are not here (package debian-archive-keyring)"
}

# apt reads this after the configuration of the machine, whose proxy and the like stay in force. Other are: the
# directories; what the machine would have done after an update; preferences, which may forbid unstable.
apt_configuration() {
  cat <<END
Dir::State "$1/state"; Dir::State::lists "lists"; Dir::State::status "$1/status";
Dir::Cache "$1/cache"; Dir::Cache::archives "archives"; Dir::Log "$1/log";
Dir::Etc::sourcelist "$1/sources.list"; Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
#clear APT::Update::Pre-Invoke; #clear APT::Update::Post-Invoke; #clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs; #clear DPkg::Pre-Invoke; #clear DPkg::Post-Invoke; #clear APT::Default-Release;
APT::Update::Error-Mode "any";
APT::Sandbox::User "root";
APT::Keep-Downloaded-Packages "true";
Acquire::Retries "1";
END
}

# ------------------------------------------------------------------ server

# Initialises where that has not been done, then becomes the server.
run() {
  local port=$1 directory
  fetch
  directory=$(realpath -m "$2")
  mkdir -p "$directory"
  local options=(--basedir="$root/usr" --lc-messages-dir="$root/usr/share/mysql" --secure-file-priv=NULL)
  [[ $(id -u) -ne 0 ]] || options+=(--user=root) # mysqld runs as root only where it is told to
  if [[ ! -d $directory/data ]]; then
    rm -rf "$directory/new"
    mysqld "${options[@]}" --initialize-insecure --datadir="$directory/new" 2>"$directory/initialize.log" ||
      die "the data directory was not initialised, see $directory/initialize.log"
    mv "$directory/new" "$directory/data"
  fi
  # The socket's name is relative to the data directory: a whole path may be longer than a socket's can be.
  options+=(--datadir="$directory/data" --tmpdir="$directory" --pid-file="$directory/mysqld.pid" --socket=mysqld.sock)
  options+=(--port="$port" --bind-address=127.0.0.1 --mysqlx=OFF --max-connections=500)
  options+=(--innodb-flush-method=nosync --innodb-doublewrite=OFF --skip-log-bin --performance-schema=OFF)
  exec "$loader" --library-path "$library:$root/usr/lib/mysql/private" "$root/usr/sbin/mysqld" --no-defaults \
    "${options[@]}"
}

start() {
  local port=$1 directory process
  directory=$(realpath -m "$2")
  fetch # here, so that its failure is told
  mkdir -p "$directory"
  setsid "${BASH_SOURCE[0]}" run "$port" "$directory" </dev/null >"$directory/mysqld.log" 2>&1 &
  process=$!
  until grep -q "ready for connections.*port: $port " "$directory/mysqld.log"; do
    kill -0 "$process" 2>/dev/null || die "the server did not start, see $directory/mysqld.log"
    sleep 0.1
  done
}

stop() {
  local directory process
  directory=$(realpath -m "$1")
  process=$(cat "$directory/mysqld.pid" 2>/dev/null) || die "no server runs in $directory"
  kill "$process" || die "process $process of $directory cannot be stopped"
  while kill -0 "$process" 2>/dev/null; do sleep 0.1; done
}

usage() {
  sed -n 's/^#   //p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

case "${1:-} $#" in
"fetch 1") fetch ;;
"version 1")
  fetch
  version
  ;;
"run 3") run "$2" "$3" ;;
"start 3") start "$2" "$3" ;;
"stop 2") stop "$2" ;;
cli\ *)
  [[ $# -ge 2 ]] || usage
  fetch
  exec "$loader" --library-path "$library:$root/usr/lib/mysql/private" "$root/usr/bin/mysql" --no-defaults \
    -uroot -h127.0.0.1 -P"$2" "${@:3}"
  ;;
*) usage ;;
esac
