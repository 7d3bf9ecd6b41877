"""A real SLURM on this machine, for tests: munge, slurmctld and one slurmd a node, on loopback, in a private folder.

No systemd, no service, nothing of the host's is touched but ``/etc/slurm/*.conf``: the job-step plugin of Snakemake
drops ``SLURM_CONF`` before its inner ``srun``, which then reads the file at its default place. Links are laid there
and taken away again; a configuration that is not ours is never replaced (the cluster refuses to start).

Several nodes share the machine: each has its own slurmd, port, spool folder and fake GPUs. A fake GPU is a character
device made like ``/dev/null``; SLURM sets no ``CUDA_VISIBLE_DEVICES`` for an ordinary file.

As a program: ``python tests/slurm/cluster.py up|down|status [--root DIR] [--accounting]``.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from slurm_packages import ACCOUNTING_PACKAGES, PACKAGES, install
from slurm_processes import (
    MARK,
    ClusterError,
    Unavailable,
    command_of,
    die_with_parent,
    end,
    kill_quietly,
    marked,
    reap,
    wait_until,
)

ETC = Path("/etc/slurm")
CONF_FILES = ("slurm.conf", "gres.conf", "cgroup.conf")
NAME = "distilltest"
LOCK = Path("/tmp/distill-energy-slurm.lock")


@dataclass(frozen=True)
class Partition:
    """A partition over all nodes. A job of a higher tier preempts jobs of lower ones, which are requeued."""

    name: str
    tier: int
    preempt: str  # REQUEUE or OFF: what happens to *its* jobs


@dataclass
class Cluster:
    """Start with ``up()`` or as a context manager; ``env`` is what a client needs."""

    root: Path
    nodes: tuple[str, ...] = ("node0", "node1")
    gpus: int = 1  # per node
    cpus: int = 2  # per node, whatever the machine has
    memory_mb: int = 6000  # per node
    accounting: bool = False
    slurmd_timeout_s: int = 10
    min_job_age_s: int = 3600
    partitions: tuple[Partition, ...] = (Partition("main", 1, "REQUEUE"), Partition("urgent", 10, "OFF"))
    tie: bool = True  # the daemons die with this process
    procs: dict[str, int] = field(default_factory=dict)
    _lock: int | None = None

    # --- what a client needs -----------------------------------------------------------------------------------------
    @property
    def env(self) -> dict[str, str]:
        """The environment for clients (sbatch, squeue, Snakemake)."""
        return {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf"), MARK: str(self.root)}

    def run(self, *command: str, check: bool = True) -> str:
        """Standard output of a SLURM command; raises ClusterError with its error text."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """Every job the controller remembers, as ``scontrol`` shows it (key → value), in order of job id."""
        found = []
        for line in self.run("scontrol", "show", "job", "--details", "--oneliner", check=False).splitlines():
            pairs = [part.partition("=") for part in line.split() if "=" in part]
            if pairs and pairs[0][0] == "JobId":
                job = {}
                for key, _, value in pairs:
                    job.setdefault(key, value)
                found.append(job)
        return sorted(found, key=lambda job: int(job["JobId"]))

    def state(self, node: str) -> str:
        """State of a node in small letters (idle, mixed, allocated, down …); a trailing * means no answer."""
        return self.run("sinfo", "-h", "-N", "-n", node, "-o", "%T").split()[0]

    # --- start and stop ----------------------------------------------------------------------------------------------
    def __enter__(self) -> "Cluster":
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> "Cluster":
        """Start everything and wait until each node is idle. Raises ClusterError; cleans up after itself."""
        if os.geteuid() != 0:
            raise Unavailable("starting SLURM needs root (devices, /etc/slurm)")
        install(PACKAGES + (ACCOUNTING_PACKAGES if self.accounting else ()))
        self._take_lock()
        try:
            self._lay_files()
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self._spawn("slurmctld", ["slurmctld", "-D", "-c"])
            for node in self.nodes:
                self.start_node(node, wait=False)
            self.wait_idle()
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """Stop every process of this cluster, by the mark in its environment, and take the links away."""
        for link in (ETC / name for name in CONF_FILES):
            if link.is_symlink() and Path(os.readlink(link)).parent == self.root:
                link.unlink()
        order = ["slurmctld", *(f"slurmd-{node}" for node in self.nodes), "slurmdbd", "mariadbd", "munged"]
        for name in order:
            pid = self.procs.pop(name, None)
            if pid is not None:
                end(pid)
        for pid in marked(str(self.root)):
            if pid != os.getpid():
                end(pid, grace=0)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def wait_idle(self, seconds: float = 60) -> None:
        """Wait until no node has work."""
        wait_until(lambda: all(self.state(node) == "idle" for node in self.nodes), seconds, "idle nodes", self._logs)

    # --- nodes -------------------------------------------------------------------------------------------------------
    def start_node(self, node: str, wait: bool = True) -> None:
        """Start the slurmd of ``node``."""
        self._spawn(f"slurmd-{node}", ["slurmd", "-D", "-N", node], extra={MARK + "_NODE": node})
        if wait:
            wait_until(lambda: self.state(node) in {"idle", "mixed", "allocated"}, 30, f"{node} idle", self._logs)

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL the slurmd alone: its jobs run on, unknown to the controller (a network cut)."""
        os.kill(self.procs[f"slurmd-{node}"], signal.SIGKILL)
        reap(self.procs.pop(f"slurmd-{node}"))

    def kill_node(self, node: str) -> list[int]:
        """SIGKILL the slurmd, its step daemons and every job process (power loss). Returns the pids."""
        self.kill_slurmd(node)
        pids = marked(str(self.root), node)
        for pid in pids:
            kill_quietly(pid)
        return pids

    # --- inside ------------------------------------------------------------------------------------------------------
    def _take_lock(self) -> None:
        """One cluster at a time: /etc/slurm is one place."""
        lock = os.open(LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + 900
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise ClusterError("another test cluster has been running for 15 minutes") from None
                time.sleep(0.5)
        self._lock = lock
        conf = ETC / "slurm.conf"
        if conf.is_symlink():
            other = Path(os.readlink(conf)).parent
            left = marked(str(other))
            if any(b"slurmctld" in command_of(pid) for pid in left):
                raise Unavailable(f"a test cluster is up at {other}: `cluster.py down --root {other}` stops it")
            for pid in left:  # jobs of a cluster whose test run was killed, and its daemons with it
                end(pid, grace=0)
        if conf.exists() and f"ClusterName={NAME}" not in conf.read_text():
            raise Unavailable(f"{conf} belongs to another SLURM; it is left alone")

    def _lay_files(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for sub in ("ctld", "log", "munge", *(f"spool-{node}" for node in self.nodes)):
            (self.root / sub).mkdir(parents=True)
        self.root.chmod(0o755)
        lines = []
        for node in self.nodes:
            for gpu in range(self.gpus):
                path = self.root / f"{node}-gpu{gpu}"
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
                lines.append(f"NodeName={node} Name=gpu Type=fake File={path}")
        (self.root / "gres.conf").write_text("\n".join(lines) + "\n")
        (self.root / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (self.root / "slurm.conf").write_text(self._slurm_conf())
        ETC.mkdir(exist_ok=True)
        for name in CONF_FILES:
            link = ETC / name
            if link.is_symlink():
                link.unlink()
            link.symlink_to(self.root / name)

    def _node_lines(self, number: int, node: str) -> str:
        gres = f" Gres=gpu:fake:{self.gpus}" if self.gpus else ""
        return (
            f"NodeName={node} NodeHostname={socket.gethostname().split('.')[0]} NodeAddr=127.0.0.1 "
            f"Port={self._ports[2 + number]} CPUs={self.cpus} RealMemory={self.memory_mb}{gres} State=UNKNOWN"
        )

    @property
    def _ports(self) -> list[int]:
        """Free ports: slurmctld, slurmdbd, one a node. Chosen once."""
        if not hasattr(self, "_chosen"):
            sockets = [socket.socket() for _ in range(2 + len(self.nodes))]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            self._chosen = [each.getsockname()[1] for each in sockets]
            for each in sockets:
                each.close()
        return self._chosen

    def _slurm_conf(self) -> str:
        root = self.root
        accounting = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            accounting = (
                "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
                f"AccountingStoragePort={self._ports[1]}\nAccountingStoragePass={root}/munge/socket\n"
                "AccountingStorageTRES=gres/gpu"
            )
        nodes = "\n".join(self._node_lines(number, node) for number, node in enumerate(self.nodes))
        partitions = "\n".join(
            f"PartitionName={p.name} Nodes=ALL Default={'YES' if number == 0 else 'NO'} MaxTime=2:00:00 "
            f"DefMemPerCPU=500 PriorityTier={p.tier} PreemptMode={p.preempt} State=UP"
            for number, p in enumerate(self.partitions)
        )
        # cred_expire: a requeued job waits until its credential has expired, two minutes by default
        return f"""ClusterName={NAME}
SlurmctldHost={socket.gethostname().split(".")[0]}(127.0.0.1)
SlurmctldPort={self._ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/ctld
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0,max_rpc_cnt=0
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MinJobAge={self.min_job_age_s}
KillWait=3
SlurmdTimeout={self.slurmd_timeout_s}
InactiveLimit=0
MpiDefault=none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ReturnToService=2
SlurmdParameters=config_overrides
{accounting}
{nodes}
{partitions}
"""

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        folder.chmod(0o755)
        key = folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        options = [f"--key-file={key}", f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
        options += [f"--log-file={folder}/log", f"--seed-file={folder}/seed", "--num-threads=2"]
        self._spawn("munged", ["munged", "--foreground", "--force", *options])
        wait_until(lambda: (folder / "socket").exists(), 10, "munged", self._logs)

    def _start_accounting(self) -> None:
        data, sock = self.root / "mysql", self.root / "mysql" / "s.sock"
        data.mkdir()
        shutil.chown(data, "mysql")
        log = (self.root / "log" / "mysql-init.log").open("w")
        base = ["--no-defaults", "--user=mysql", f"--datadir={data}"]
        subprocess.run(
            ["mariadb-install-db", *base, "--auth-root-authentication-method=normal", "--skip-test-db"],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
        server = ["mariadbd", *base, f"--socket={sock}", f"--pid-file={data}/pid", "--skip-networking"]
        self._spawn("mariadbd", [*server, "--innodb-buffer-pool-size=64M"])

        def sql(text: str) -> bool:
            client = ["mariadb", "--no-defaults", "-S", str(sock), "-uroot", "-e", text]
            return subprocess.run(client, capture_output=True).returncode == 0

        wait_until(lambda: sql("select 1"), 30, "mariadbd", self._logs)
        sql("create database slurm_acct_db; create user slurm@localhost identified by 'slurm'")
        sql("grant all on slurm_acct_db.* to slurm@localhost")
        conf = self.root / "slurmdbd.conf"
        conf.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self.root}/munge/socket\nDbdHost=localhost\nDbdAddr=127.0.0.1\n"
            f"DbdPort={self._ports[1]}\nSlurmUser=root\nPidFile={self.root}/slurmdbd.pid\n"
            f"LogFile={self.root}/log/slurmdbd.log\nStorageType=accounting_storage/mysql\nStorageHost=localhost\n"
            "StorageUser=slurm\nStoragePass=slurm\nStorageLoc=slurm_acct_db\n"
        )
        conf.chmod(0o600)
        self._spawn("slurmdbd", ["slurmdbd", "-D"], extra={"MYSQL_UNIX_PORT": str(sock)})

        def manage(*words: str) -> bool:
            command = ["sacctmgr", "-i", *words]
            return subprocess.run(command, env=self.env, capture_output=True).returncode == 0

        wait_until(lambda: manage("-n", "list", "cluster"), 30, "slurmdbd", self._logs)
        manage("add", "cluster", NAME)
        manage("add", "account", "demo", f"cluster={NAME}")
        manage("add", "user", "root", "account=demo")

    def _spawn(self, name: str, command: list[str], extra: dict[str, str] | None = None) -> None:
        """Start a daemon in the foreground mode of its own, in a session of its own."""
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        program = shutil.which(command[0], path=path)
        if program is None:
            raise ClusterError(f"{command[0]} is not installed")
        log = (self.root / "log" / f"{name}.out").open("ab")
        process = subprocess.Popen(
            [program, *command[1:]],
            env={**self.env, "PATH": path, **(extra or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent if self.tie else None,
        )
        self.procs[name] = process.pid
        (self.root / "pids.json").write_text(json.dumps(self.procs))

    def _logs(self) -> str:
        """The ends of the daemons' logs, for an error message."""
        parts = []
        for path in sorted((self.root / "log").glob("*")):
            tail = path.read_text(errors="replace").splitlines()[-8:]
            parts.append(f"--- {path.name}\n" + "\n".join(tail))
        return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description="A SLURM on this machine, for tests (root).")
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--root", type=Path, default=Path("/tmp/distill-energy-slurm"))
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd and MariaDB (needed for sacct)")
    args = parser.parse_args()
    cluster = Cluster(args.root, accounting=args.accounting, tie=False)
    try:
        if args.action == "up":
            cluster.up()
            print(f"export SLURM_CONF={args.root}/slurm.conf {MARK}={args.root}")
        elif args.action == "down":
            pids = args.root / "pids.json"
            alive = set(marked(str(args.root)))
            if pids.exists():
                cluster.procs = {name: pid for name, pid in json.loads(pids.read_text()).items() if pid in alive}
            cluster.down()
        else:
            print(cluster.run("sinfo", "-N", "-l"), cluster.run("squeue", "-l"), sep="\n")
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
