"""A warm process: a forked child is the job, its signals and its end are the client's, and the start counts."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from distill_energy.energy import worker
from distill_energy.energy.identity import process_start
from distill_energy.store.sidecar import read

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux alone has process descriptors")

JOBS = """
import os, sys, time

def report(path):
    with open(path, "w") as out:
        print(os.environ["WORD"], os.getcwd(), os.getpid(), "json" in sys.modules, file=out)
    print("said", file=sys.stderr)

def fail():
    raise ValueError("no such luck")

def leave(status):
    sys.exit(status)

def die():
    os.kill(os.getpid(), 9)

def sleep(path):
    with open(path, "w") as out:
        print(os.getpid(), file=out)
    time.sleep(600)
"""
START = """
import json, sys
from distill_energy import warm
warm.LIBRARIES = ("json", "no_such_library")
sys.exit(warm.main(sys.argv[1], json.loads(sys.argv[2])))
"""


@pytest.fixture
def warm(tmp_path, monkeypatch):
    """A warm process of this test's, in a folder with a module of jobs."""
    (tmp_path / "jobs_of_test.py").write_text(JOBS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(worker.OWNER, worker.owned_by(os.getpid(), "results"))
    monkeypatch.setenv("WORD", "first")
    energy = {"interval_s": 0.1, "jitter": 0.0, "cpu": "off", "pue": 1.0}
    energy["grid"] = dict.fromkeys(("country", "region", "g_per_kwh", "source"))
    start = {"energy": energy, "began": time.time()}
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", START, worker.address()[1:].decode(), json.dumps(start)],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    while (connection := worker.connect()) is None:
        assert process.poll() is None
        time.sleep(0.02)
    connection.close()
    yield process
    process.kill()
    process.wait()


def client(tmp_path, call: str, **environment) -> subprocess.Popen:
    """A process that has a job done, as a rule's script does."""
    code = f"import sys; from distill_energy.energy import worker; sys.exit(worker.call({call}, {{}}))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.Popen([sys.executable, "-c", code], env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)


def until(condition, seconds: float = 60.0):
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def test_a_job_has_its_clients_environment_folder_and_streams(warm, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    done = client(tmp_path / "elsewhere", "'jobs_of_test:report', {'path': 'out'}", WORD="second")
    assert done.communicate(timeout=60)[1] == "said\n"
    assert done.returncode == 0
    word, folder, pid, loaded = (tmp_path / "elsewhere" / "out").read_text().split()
    assert (word, folder, loaded) == ("second", str(tmp_path / "elsewhere"), "True")
    assert int(pid) not in (warm.pid, done.pid)


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        ("'jobs_of_test:fail', {}", 1, "ValueError: no such luck"),
        ("'jobs_of_test:leave', {'status': 7}", 7, ""),
        ("'jobs_of_test:die', {}", 137, ""),
        ("'jobs_of_test:missing', {}", 1, "AttributeError"),
    ],
)
def test_the_exit_status_is_the_jobs(warm, tmp_path, call, status, said):
    done = client(tmp_path, call)
    assert said in done.communicate(timeout=60)[1]
    assert done.returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_job_ends_with_its_client(warm, tmp_path, number):
    done = client(tmp_path, "'jobs_of_test:sleep', {'path': 'pid'}")
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()))
    start = process_start(pid)
    os.kill(done.pid, number)
    until(lambda: process_start(pid) != start)
    done.communicate(timeout=60)
    assert done.returncode != 0
    assert warm.poll() is None  # the next job has it still


def test_its_start_is_an_execution_of_its_own(warm, tmp_path):
    (folder,) = (tmp_path / "results/prerun/worker").iterdir()
    record = read(folder / "energy.json")
    assert (record.stage, record.name, record.version) == ("prerun", "worker", folder.name)
    assert record.results == {"loaded": ["json"]}
    assert [phase.name for phase in record.attempts[0].phases] == ["verify", "start"]


def test_it_ends_with_its_workflow(tmp_path, monkeypatch):
    owner = subprocess.Popen(["sleep", "600"])
    monkeypatch.setenv(worker.OWNER, worker.owned_by(owner.pid, "results"))
    assert worker.owner() == owner.pid
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(b"\0distill-energy-test-%d" % os.getpid())
    listener.listen()
    code = "import socket, sys; from distill_energy.warm import serve; fd, pid = map(int, sys.argv[1:]); "
    code += "print('here', flush=True); serve(socket.socket(fileno=fd), pid)"
    served = subprocess.Popen(
        [sys.executable, "-c", code, str(listener.fileno()), str(owner.pid)],
        pass_fds=[listener.fileno()],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert served.stdout.readline() == b"here\n"
    assert served.poll() is None
    owner.kill()
    owner.wait()
    assert served.wait(60) == 0
    assert worker.owner() is None  # and nobody asks it any more
    assert worker.call("jobs_of_test:report", {}, {}) is None


@pytest.mark.parametrize("value", ["", "1", "x:y:z:", "1:0::results"])
def test_without_an_owner_that_lives_here_the_stage_runs_itself(monkeypatch, value):
    monkeypatch.setenv(worker.OWNER, value)
    assert worker.call("json:dumps", {}, {}) is None


def test_a_cluster_job_does_not_use_the_head_nodes_process(monkeypatch):
    monkeypatch.setenv(worker.OWNER, worker.owned_by(os.getpid(), "results"))
    assert worker.owner() == os.getpid()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert worker.owner() is None


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become another user")
def test_another_users_process_is_refused(warm, tmp_path):
    code = textwrap.dedent(
        """
        import os, socket, sys
        os.setuid(65534)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(b"\\0" + sys.argv[1].encode())
        sys.exit(0 if connection.recv(1) == b"" else 1)
        """
    )
    done = subprocess.run([sys.executable, "-c", code, worker.address()[1:].decode()], timeout=60, check=False)
    assert done.returncode == 0
    with contextlib.suppress(ProcessLookupError):
        assert warm.poll() is None


def test_none_where_there_is_an_nvidia_gpu(tmp_path, monkeypatch):
    """CUDA does not survive a fork."""
    monkeypatch.setenv(worker.OWNER, worker.owned_by(os.getpid(), "results"))
    assert worker.owner() == os.getpid()
    driver = tmp_path / "nvidiactl"
    monkeypatch.setattr(worker, "CUDA_DRIVER", (str(driver),))
    assert worker.owner() == os.getpid()
    driver.touch()
    assert worker.owner() is None
    assert worker.call("jobs_of_test:leave", {"status": 0}, {}) is None
