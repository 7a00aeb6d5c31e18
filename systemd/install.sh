#!/bin/sh
# Installs the gateway as a systemd service from this checkout, or upgrades it:
#   sudo systemd/install.sh [--wheels DIR]     DIR: wheels, for a machine without internet
# Programs go to /opt/gateway, each version into a folder of its own: the running one is replaced only when the new one
# is complete and accepts the configuration. Configuration, credentials and stored readings are never touched.
# Exit codes: 0 installed and running · 1 nothing was changed for the running service · 2 wrong usage · 3 installed, but
# the service does not run.
set -eu
umask 022
cd "$(dirname "$0")/.."

say() { echo "gateway: $*"; }
fail() { echo "install.sh: $*" >&2; exit 1; }
usage() { echo "usage: sudo systemd/install.sh [--wheels DIR]" >&2; exit 2; }

wheels=
case $# in
  0) ;;
  2) [ "$1" = --wheels ] || usage; wheels=$2 ;;
  *) usage ;;
esac
[ "$(id -u)" = 0 ] || fail "run me as root (sudo)"
[ -d /run/systemd/system ] || fail "this system was not booted with systemd"
if [ -n "$wheels" ]; then
  ls "$wheels"/gateway-*.whl >/dev/null 2>&1 || fail "no gateway-*.whl in $wheels; make it with: python3 -m pip wheel -w DIR ."
fi

complete() { python3 -c 'import ensurepip, venv' 2>/dev/null; }
if ! complete; then
  say "installing the package python3-venv"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null; } || true
  complete || fail "python3-venv is missing and could not be installed"
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || fail "needs Python 3.11 or newer (Debian 12, Raspberry Pi OS 12); this is $(python3 --version)"

getent group gateway >/dev/null || groupadd --system gateway
getent passwd gateway >/dev/null \
  || useradd --system --gid gateway --home-dir /var/lib/gateway --no-create-home --shell /usr/sbin/nologin gateway
# BlueZ lets its group in; the group is made here when BlueZ comes later
getent group bluetooth >/dev/null || groupadd --system bluetooth
usermod --append --groups dialout,bluetooth gateway

install -d -m 0755 /opt/gateway
new=$(mktemp -d /opt/gateway/version.XXXXXX)
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
chmod 0755 "$new"
say "building in $new"
python3 -m venv "$new"
if [ -n "$wheels" ]; then
  "$new/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$wheels" gateway
else
  "$new/bin/python" -m pip install --quiet --disable-pip-version-check .
fi

install -d -m 0750 -o root -g gateway /etc/gateway
install -d -m 0700 -o root -g root /etc/gateway/credentials
install -m 0644 config.example.toml /etc/gateway/config.example.toml
if [ ! -e /etc/gateway/config.toml ]; then
  printf '%s\n' "# See config.example.toml beside this file. Without buses and endpoints the gateway waits." \
    "[gateway]" "#name = \"…\"  # without it the host name" >"$new/config.toml"
  install -m 0640 -o root -g gateway "$new/config.toml" /etc/gateway/config.toml
  rm "$new/config.toml"
fi
if ! "$new/bin/gateway" check --quiet /etc/gateway/config.toml; then
  if systemctl --quiet is-active gateway.service; then
    fail "the new version does not accept /etc/gateway/config.toml; the old one goes on running"
  fi
  say "/etc/gateway/config.toml has mistakes (above)"
fi

old=
if systemctl --quiet is-active gateway.service; then old=$(readlink /opt/gateway/current || true); fi
switch() { ln -sfn "$1" /opt/gateway/current.new && mv -T /opt/gateway/current.new /opt/gateway/current; }
switch "${new##*/}"
trap - EXIT
install -m 0644 README.md /opt/gateway/README.md
ln -sfn /opt/gateway/current/bin/gateway /usr/local/bin/gateway
install -m 0644 systemd/gateway.service /etc/systemd/system/gateway.service
systemctl daemon-reload
systemctl --quiet enable gateway.service
say "$("$new/bin/gateway" --version | cut -d' ' -f2) is installed; starting"
if ! systemctl restart gateway.service; then
  journalctl --unit gateway.service --lines 10 --no-pager --output cat >&2
  if [ -n "$old" ]; then
    switch "$old"
    rm -rf "$new"
    systemctl restart gateway.service && fail "the new version does not start (see above); back to the old one, which runs"
  fi
  echo "install.sh: installed, but the service does not run (see above)" >&2
  exit 3
fi
for version in /opt/gateway/version.*; do
  [ "$version" = "$new" ] || rm -rf "$version"
done
say "running: $(systemctl show --property StatusText --value gateway.service)"
say "next: edit /etc/gateway/config.toml, then: gateway check && systemctl restart gateway"
