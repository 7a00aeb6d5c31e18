#!/bin/sh
# Installs the gateway as a systemd service from this checkout: user, virtual environment in /opt/gateway, unit,
# example configuration. Running it again upgrades; configuration, credentials and buffer are left as they are.
#   sudo systemd/install.sh [--wheels DIR]     DIR: wheels for a machine without internet
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
wheels=
[ "${1:-}" = --wheels ] && wheels=$2
[ "$(id -u)" = 0 ] || { echo "install.sh: run me as root (sudo)" >&2; exit 1; }
say() { echo "gateway: $*"; }

python=$(command -v python3 || true)
"${python:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "install.sh: needs Python 3.11 or newer (Debian 12, Raspberry Pi OS bookworm)" >&2; exit 1; }
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  say "installing python3-venv"
  apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
fi

getent group gateway >/dev/null || groupadd --system gateway
getent passwd gateway >/dev/null || useradd --system --gid gateway --home-dir /var/lib/gateway --shell /usr/sbin/nologin gateway
for group in dialout bluetooth; do
  if getent group $group >/dev/null; then usermod -aG $group gateway; fi
done

say "installing into /opt/gateway"
[ -x /opt/gateway/bin/python ] || "$python" -m venv /opt/gateway
if [ -n "$wheels" ]; then
  /opt/gateway/bin/python -m pip install -q --no-index --find-links "$wheels" --upgrade --force-reinstall --no-deps gateway
  /opt/gateway/bin/python -m pip install -q --no-index --find-links "$wheels" gateway
else
  /opt/gateway/bin/python -m pip install -q --upgrade "$here"
fi
cp "$here/README.md" /opt/gateway/README.md
ln -sf /opt/gateway/bin/gateway /usr/local/bin/gateway

install -d -m 0750 -o root -g gateway /etc/gateway
install -d -m 0700 -o root -g root /etc/gateway/credentials
for secret in uplink-token uplink-key; do   # systemd will not start a service whose credential is missing
  [ -e /etc/gateway/credentials/$secret ] || install -m 0600 /dev/null /etc/gateway/credentials/$secret
done
install -m 0644 "$here/config.example.toml" /etc/gateway/config.example.toml
if [ ! -e /etc/gateway/config.toml ]; then
  printf '%s\n' "# See config.example.toml beside this file. Without buses and endpoints the gateway waits." \
    "[gateway]" "name = \"$(hostname 2>/dev/null | tr -c 'A-Za-z0-9_.:\n-' - || echo gateway)\"" >/etc/gateway/config.toml
  chmod 0640 /etc/gateway/config.toml && chgrp gateway /etc/gateway/config.toml
fi

install -m 0644 "$here/systemd/gateway.service" /etc/systemd/system/gateway.service
systemctl daemon-reload
systemctl enable -q gateway.service
systemctl restart gateway.service
systemctl --no-pager --lines=0 status gateway.service || true
say "edit /etc/gateway/config.toml, then: gateway check /etc/gateway/config.toml && systemctl restart gateway"
