#!/bin/sh
# Sets everything up on a fresh Debian or Raspberry Pi OS and runs the demo. Arguments go to `gateway demo`.
set -eu
cd "$(dirname "$0")/../.."
missing=
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
PATH=$PATH:/usr/sbin command -v mosquitto >/dev/null 2>&1 || missing="$missing mosquitto"
command -v dbus-daemon >/dev/null 2>&1 || missing="$missing dbus"
if [ -n "$missing" ]; then
  as_root=
  [ "$(id -u)" = 0 ] || as_root=sudo
  echo "demo: installing$missing"
  { $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing >/dev/null; } \
    || echo "demo: could not install$missing; what needs it is left out"
fi
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install -q --disable-pip-version-check -e .
exec .venv/bin/gateway demo "$@"
