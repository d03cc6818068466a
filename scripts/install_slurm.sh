#!/bin/bash
# Installs Slurm and MUNGE on Debian or Ubuntu, for tests/whole/test_slurm.py: it starts a cluster of one node of its own, on
# loopback, with nothing but its own files. The services that the packages bring are not needed and are switched off.
set -eu
if [ "$(id -u)" != 0 ]; then
  echo "Run it as root: sudo $0" >&2
  exit 2
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge
if [ -d /run/systemd/system ]; then
  systemctl disable --now slurmctld slurmd munge
fi
slurmctld -V
