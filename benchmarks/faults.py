"""Random faults over a tiny study, each followed by a resume and ``verify``: tried, survived, refused, lost, silent.

    python benchmarks/faults.py [--count 200] [--seed 0]

Four stages that write known bytes run under the real lock, meter, sampler, journal and commit, on a simulated GPU of
constant power, so that both the artifacts and the joules that must be recorded are known. A fault is **survived** if
the next run ends with the same artifacts; **refused** if it was named in one line (by a stage or by ``verify``) and the
study is whole after what ``verify --repair`` says; **lost** if joules that were spent are neither recorded nor said to
be unknown; **silent** if the artifacts differ, a traceback is all that is said, or the study cannot be made whole.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / "workflow_scripts"), str(REPO)]

WATTS = 300.0
WORK_S = 0.25
STAGES = ("preprocess", "teacher_logits", "student_training", "evaluation")
KINDS = ("kill_call", "kill_time", "term", "kill_both", "stop", "quota", "clock", "flip", "truncate", "empty", "delete",
         "swap", "journal")  # fmt: skip


# --- the study, in a process of its own ------------------------------------------------------------------------------


def specs(root: str):
    """Four stages, each reading those before it."""
    from distill_energy.plan.spec import make_spec

    energy = {"interval_s": 0.05, "jitter": 0.0, "cpu": "off", "pue": 1.0}
    energy["grid"] = {"country": None, "region": None, "g_per_kwh": None, "source": None}
    made = []
    for stage in STAGES:
        consumes = tuple(spec.as_input({"student_training": "model"}.get(spec.stage, spec.stage)) for spec in made)
        labels = {"dataset": "d", "teacher": "t", "student": "s", "pipeline": "kd", "seed": 0}
        labels["role"] = "student" if stage in ("student_training", "evaluation") else "teacher"
        name = "data-d" if stage == "preprocess" else f"d-{stage}"
        made.append(make_spec(stage, name, 1, {"n": 1}, consumes, root=root, energy=energy, labels=labels))
    return made


def work(ctx) -> dict:
    """Known bytes from the inputs' bytes, in steps that a resume goes on from."""
    from distill_energy.store.atomic import write_text

    print(json.dumps({"began": ctx.spec.stage, "t": time.monotonic()}), flush=True)
    digest = hashlib.sha256(ctx.spec.name.encode())
    for folder in ctx.inputs.values():
        for path in sorted(folder.glob("part-*")):
            digest.update(path.read_bytes())
    for step in range(3):
        text = hashlib.sha256(digest.digest() + bytes([step])).hexdigest() * 200
        write_text(ctx.work / f"step-{step}", text)
        time.sleep(WORK_S / 3)
        write_text(ctx.out / f"part-{step}", text)
    print(json.dumps({"ended": ctx.spec.stage, "t": time.monotonic()}), flush=True)
    return {"value": digest.hexdigest()}


def inject(fault: dict) -> None:
    """A fault that strikes from inside the stage's process."""
    if fault["kind"] == "quota":
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], fault["bytes"]))
    elif fault["kind"] == "clock":
        real, began = time.time, time.monotonic()
        time.time = lambda: real() + (fault["step_s"] if time.monotonic() - began > fault["after_s"] else 0.0)
    elif fault["kind"] == "kill_call":
        count = [0]
        for name in ("replace", "fsync"):
            original = getattr(os, name)

            def struck(*args, original=original, **rest):
                count[0] += 1
                if count[0] == fault["call"] and not fault["after"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*args, **rest)
                if count[0] == fault["call"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            setattr(os, name, struck)


def child(root: str, fault: dict) -> int:
    """Run every stage that is not whole, as Snakemake would; one line for what is wrong."""
    from distill_energy.errors import UserError
    from distill_energy.stage import execute

    inject(fault)
    for spec in specs(root):
        if (Path(spec.folder) / "energy.json").exists():
            continue
        try:
            execute(spec, work)
        except UserError as error:
            print(f"error: {spec.stage}: {error}", file=sys.stderr)
            return 1
    return 0


# --- faults and their judgement --------------------------------------------------------------------------------------


class Trial:
    """One study, one fault."""

    def __init__(self, root: Path, rng: random.Random, kind: str, environment: dict[str, str]) -> None:
        self.root, self.rng, self.kind, self.environment = root, rng, kind, environment
        self.busy_s = 0.0  # between a stage's beginning and its end, or the end of its process
        self.said: list[str] = []
        self.traceback = False

    def run(self, fault: dict | None = None) -> int:
        """Run the study's process, with what strikes it from outside."""
        fault = fault or {"kind": "none"}
        command = [sys.executable, str(Path(__file__)), "--child", str(self.root / "results"), json.dumps(fault)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment, cwd=self.root
        )
        if fault["kind"] in ("kill_time", "term", "kill_both", "stop"):
            time.sleep(fault["after_s"])
            self._strike(process, fault["kind"])
        out, err = process.communicate(timeout=120)
        ended = time.monotonic()
        began = None
        for line in out.splitlines():
            event = json.loads(line)
            if "began" in event:
                began = event["t"]
            else:
                self.busy_s += event["t"] - began
                began = None
        if began is not None:
            self.busy_s += ended - began
        self.said += [line for line in err.splitlines() if line.startswith("error: ")]
        self.traceback |= "Traceback" in err and fault["kind"] == "none"
        return process.returncode

    def _strike(self, process: subprocess.Popen, kind: str) -> None:
        if kind == "stop":
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.4)
            process.send_signal(signal.SIGCONT)
        elif kind == "term":
            process.terminate()
        else:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            samplers = children.read_text().split() if kind == "kill_both" and children.exists() else []
            for pid in (*map(int, samplers), process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def fault(self) -> dict:
        """A fault of this trial's kind, drawn."""
        rng = self.rng
        drawn = {
            "kind": self.kind,
            "after_s": rng.uniform(0.3, 3.0),
            "call": rng.randint(1, 60),
            "after": rng.random() < 0.5,
        }
        return drawn | {"bytes": rng.randint(200, 30_000), "step_s": rng.choice([-86_400.0, -3.0, 3600.0])}

    def damage(self) -> None:
        """Harm a file of what is there."""
        rng, results = self.rng, self.root / "results"
        journals = sorted(results.glob("attempts/*/*/*/*/journal.jsonl"))
        files = journals if self.kind == "journal" else sorted(
            p for p in results.rglob("*") if p.is_file() and p.name not in ("lock", "sampler.log", "begun")
        )  # fmt: skip
        path = rng.choice(files)
        data = bytearray(path.read_bytes())
        how = rng.choice(["flip", "truncate", "empty", "zero"]) if self.kind == "journal" else self.kind
        if how == "swap":
            same = [p for p in files if p != path and p.stat().st_size == path.stat().st_size] or [path]
            other = rng.choice(same)
            first, second = path.read_bytes(), other.read_bytes()
            path.write_bytes(second)
            other.write_bytes(first)
            return
        if how == "delete":
            path.unlink()
            return
        if how == "flip" and data:
            place = rng.randrange(len(data) * 8)
            data[place // 8] ^= 1 << (place % 8)
        elif how == "truncate":
            del data[rng.randrange(max(len(data), 1)) :]
        elif how == "zero":
            data = bytearray(len(data))
        else:
            data = bytearray()
        path.write_bytes(data)

    def content(self) -> dict[str, str]:
        """Hash of every file that a stage wrote."""
        results = self.root / "results"
        return {
            f"{path.parts[-4]}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(results.glob("*/*/*/part-*"))
        }

    def verified(self) -> tuple[list, float, bool]:
        """(what ``verify`` finds, J recorded over all attempts, whether an energy is said to be unknown)."""
        from distill_energy.answer.aggregate import judge
        from distill_energy.errors import UserError
        from distill_energy.ledger.rows import counts
        from distill_energy.report.verify import verify

        try:
            findings, _ = verify([self.root / "results"])
        except UserError as error:
            self.said.append(str(error))
            return [error], 0.0, True
        found, problems = judge([self.root / "results"])
        rows = [r["total_j"] for r in found.rows if counts(r)]
        unknown = None in rows or any(p.kind in ("rejected", "running") for p in problems)
        return findings, sum(v for v in rows if v is not None), unknown

    def judged(self, expected: dict[str, str]) -> tuple[str, str]:
        """(outcome, why) of the whole trial."""
        if self.kind in ("flip", "truncate", "empty", "delete", "swap", "journal"):
            self.run()
            if self.rng.random() < 0.5:  # also while a stage is missing
                shutil.rmtree(self.root / "results" / "evaluation")
            self.damage()
        else:
            self.run(self.fault())
        status = self.run()
        findings, joules, unknown = self.verified()
        named = status != 0 or bool(findings)
        for _ in range(4):
            if status == 0 and not findings:
                break
            for finding in findings:
                self.said.append(getattr(finding, "message", str(finding)))
                if getattr(finding, "remake", None):
                    for place in (
                        Path(finding.remake),
                        Path(str(finding.remake).replace("/results/", "/results/attempts/")),
                    ):
                        (place / "energy.json").unlink(missing_ok=True)
            self._follow(status)
            status = self.run()
            findings, joules, unknown = self.verified()
        if self.traceback:
            return "silent", "a traceback"
        if status or findings:
            return "silent", f"not whole: {self.said[-1:]}"
        if self.content() != expected:
            return "silent", "other content"
        slack = WATTS * (0.35 + 0.1 * self.busy_s)  # a tick at either end of each attempt, a busy machine
        if not unknown and joules < WATTS * self.busy_s - slack:
            return "lost", f"{joules:.0f} J recorded, {WATTS * self.busy_s:.0f} spent"
        return ("refused", self.said[0] if self.said else "") if named else ("survived", "")

    def _follow(self, status: int) -> None:
        """Do what a stage's line says: ``remove FOLDER to remake it``."""
        for line in self.said if status else ():
            if "remove " in line:
                folder = Path(line.split("remove ")[-1].split(" to ")[0].split(" and ")[0])
                folder = folder if folder.is_absolute() else self.root / folder
                if folder.is_dir() and "results" in folder.parts:
                    shutil.rmtree(folder)
                    copy = Path(str(folder).replace("/results/", "/results/attempts/")) / "energy.json"
                    copy.unlink(missing_ok=True)


def environment(folder: Path) -> dict[str, str]:
    """A simulated GPU of ``WATTS`` for every process of the study."""
    from tests.energy import fakes

    library = folder / "lib"
    library.mkdir(parents=True)
    fakes.build("fake_nvml.c", library / "libnvidia-ml.so.1")
    gpus = fakes.FakeGpus(folder / "nvml.txt")
    gpus.add(fakes.Power("const", WATTS))
    clean = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    return clean | {
        "LD_LIBRARY_PATH": str(library),
        "FAKE_NVML": str(folder / "nvml.txt"),
        "DISTILL_ENERGY_LOCKS": str(folder / "locks"),
        "PYTHONPATH": str(REPO / "workflow_scripts"),
        "TMPDIR": str(folder),
    }


def campaign(count: int, seed: int, say=print) -> Counter:
    """``count`` trials, every kind in turn; outcome → number, by kind too."""
    outcomes: Counter = Counter()
    with tempfile.TemporaryDirectory(prefix="distill-energy-faults-") as folder:
        place = Path(folder)
        shared = environment(place / "gpu")
        restore = _same_temporary_folder(shared["TMPDIR"])
        clean = Trial(place / "clean", random.Random(0), "none", shared)
        clean.root.mkdir()
        assert clean.run() == 0, clean.said
        expected = clean.content()
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            trial = Trial(place / f"t{number}", random.Random(f"{seed}-{number}"), kind, shared)
            trial.root.mkdir()
            outcome, why = trial.judged(expected)
            outcomes[outcome] += 1
            outcomes[kind, outcome] += 1
            if outcome in ("lost", "silent"):
                say(f"{outcome}: trial {number} ({kind}): {why}")
                if os.environ.get("KEEP"):
                    shutil.copytree(trial.root, Path(os.environ["KEEP"]) / f"t{number}", dirs_exist_ok=True)
            shutil.rmtree(trial.root, ignore_errors=True)
        restore()
    return outcomes


def _same_temporary_folder(folder: str):
    """Look for what a full disk refused where the study's processes put it; returns what undoes that."""
    before = tempfile.tempdir
    tempfile.tempdir = folder

    def restore() -> None:
        tempfile.tempdir = before

    return restore


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], json.loads(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes = campaign(options.count, options.seed)
    words = ("survived", "refused", "lost", "silent")
    print(f"{'fault':<12}" + "".join(f"{word:>10}" for word in words))
    for kind in KINDS:
        print(f"{kind:<12}" + "".join(f"{outcomes[kind, word]:>10}" for word in words))
    print(f"{'all':<12}" + "".join(f"{outcomes[word]:>10}" for word in words) + f"   of {options.count} tried")
    return 1 if outcomes["lost"] or outcomes["silent"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
