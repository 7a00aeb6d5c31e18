#!/bin/sh
# Sets everything up on a fresh Debian or Raspberry Pi OS and runs the tests. Arguments go to pytest.
# What needs a package that only root can install is skipped, with its reason, when it cannot be had.
set -eu
cd "$(dirname "$0")/.."
say() { echo "tests: $*" >&2; }

missing=
need() { command -v "$1" >/dev/null 2>&1 || [ -e "$1" ] || missing="$missing $2"; }
PATH=$PATH:/usr/sbin
need git git
need gcc gcc
need mosquitto mosquitto
need socat socat
need tinyproxy tinyproxy-bin
need microsocks microsocks
need dbus-daemon dbus
need /usr/include/modbus/modbus.h libmodbus-dev
need ip iproute2
need chromium chromium
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
if [ -n "$missing" ]; then
  as_root=
  [ "$(id -u)" = 0 ] || as_root="sudo -n"
  if $as_root true 2>/dev/null; then
    say "installing$missing"
    # mosquitto is started by the tests themselves, on free ports: keep Debian from starting one as a service
    $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing >/dev/null
  else
    say "not root, so not installed:$missing (tests that need them are skipped)"
  fi
fi

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install -q --disable-pip-version-check -e '.[test]'
exec .venv/bin/python -m pytest "$@"
