"""Debian's packages of SLURM, installed where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess

from slurm_processes import Unavailable

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
ACCOUNTING_PACKAGES = ("slurmdbd", "mariadb-server", "mariadb-client")


def install(packages: tuple[str, ...]) -> None:
    """Install the Debian packages that are missing. Raises ClusterError where that is impossible."""
    missing = [name for name in packages if not _installed(name)]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"not installed, and there is no apt-get: {', '.join(missing)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
    ):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"{' '.join(command[:2])}: {done.stderr.strip()[-300:]}")


def _installed(package: str) -> bool:
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, text=True)
    return done.stdout.endswith("ok installed")
