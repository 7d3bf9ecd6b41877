"""What every rule's script does around its own work: lock, meter, run, sidecar."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from .config.params import read_params, work_of
from .context import Meter
from .energy import worker
from .energy.sensors.nvml import narrowed_to
from .errors import UserError
from .plan.spec import StageSpec
from .store import atomic
from .store import sidecar as schema
from .store.artifact import damage, lacking, produced
from .store.lock import artifact_lock
from .store.paths import check_inside
from .store.teacher_store import check_writable, register, shared_modes


@dataclass
class StageContext:
    """What a stage's ``main`` gets (see docs/architecture.md)."""

    spec: StageSpec
    inputs: dict[str, Path]
    out: Path
    work: Path
    meter: Meter
    log: Callable[[str], None]

    @cached_property
    def params(self) -> Any:
        """The stage's parameters as their type in ``config/params.py``. Raises UserError naming a wrong key."""
        return read_params(self.spec.stage, self.spec.params)


def run_stage(job: Any) -> None:
    """Entry of a rule's script: ``job`` is Snakemake's ``snakemake`` object with the spec among its params.

    Runs in a warm process where the workflow has one (``warm_worker``), else here.
    """
    let_threads_sleep()
    work = {"spec": dict(job.params.spec), "log": job.log[0] if job.log else None}
    start = {"energy": work["spec"]["energy"], "began": time.time()}
    status = worker.call(f"{__name__}:run_job", work, start)
    if status is None:
        run_job(**work)
    elif status:
        sys.exit(status)


def run_job(spec: dict[str, Any], log: str | None) -> None:
    """Do a stage's work in this process and commit its artifact; ends the process with status 1 where it fails."""
    what = StageSpec.from_json(spec)
    with logged_to(log, f"{what.stage}/{what.name}"):
        execute(what, import_module(f"{__package__}.{module_of(what)}").main)


#: Work of a stage → the module whose ``main(ctx)`` does it.
MAIN = {
    "prerun": "prerun",
    "preprocess_data": "data.stage",
    "preprocess_model": "models.stage",
    "teacher_logits": "teacher.logits",
    "teacher_generation": "teacher.generation",
    "reference_logprobs": "train.logprobs",
    "student_training": "train.stage",
    "quantised": "train.quantise",
    "contamination": "evaluate.contamination",
    "evaluation": "evaluate.stage",
}


def module_of(spec: StageSpec) -> str:
    """The module that does a stage's work."""
    return MAIN[work_of(spec.stage, spec.params)]


def let_threads_sleep() -> None:
    """Have OpenMP's threads wait for each other for some 50 µs and then sleep, unless the user chose otherwise.

    By default they spin for milliseconds, which burns joules, and on a busy host multiplies the time; waking them for
    each of a training step's thousand short loops costs a quarter of its time. To be called before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def logged(job: Any) -> contextlib.AbstractContextManager[Callable[[str], None]]:
    """What a script prints also goes to its rule's log: see ``logged_to``."""
    return logged_to(job.log[0] if job.log else None, job.rule)


@contextlib.contextmanager
def logged_to(path: str | None, name: str) -> Iterator[Callable[[str], None]]:
    """Copy stderr to a file; a UserError ends the process in one line, anything else with its traceback."""
    with _logging(path):
        try:
            yield _say
        except UserError as error:
            print(f"error: {name}: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        except Exception:
            traceback.print_exc()
            sys.exit(1)


def execute(spec: StageSpec, main: Callable[[StageContext], dict | None]) -> schema.Sidecar:
    """Run one stage under the meter and commit its artifact. Raises what ``main`` raises, the attempt recorded."""
    out, attempts = Path(spec.folder), Path(spec.attempts)
    store = _remote_store(spec)
    if store is not None:
        store.prepare()
    for root, written in _shared_folders(spec).items():
        check_writable(root, written)
    with contextlib.ExitStack() as held:
        if spec.receipts:
            held.enter_context(shared_modes(spec.root))
        held.enter_context(artifact_lock(attempts, _say))
        used = held.enter_context(own_gpus(gpus_of(spec), f"{spec.stage}/{spec.name}"))
        record = _restore(out, attempts)
        if record is None and store is not None and spec.root == str(store.mirror):
            record = store.take(spec.key)  # another workflow may have made it since this one was planned
        if record is None and (results := _finished(out, attempts)) is not None:
            _say("the work was done and measured before its record was written; writing it")
            record = _commit(spec, out, attempts, results)
        if record is None:
            record = _make(spec, main, store, used)
        _share(spec, record, store)
    if spec.receipts:
        atomic.write_text(spec.sidecar, schema.dump(record))
    return record


def _shared_folders(spec: StageSpec) -> dict[str, list[str]]:
    """Teacher store (a folder) → the folders in it to which this stage will write."""
    if spec.receipts:
        return {spec.root: [spec.folder, spec.attempts]}
    found: dict[str, list[str]] = {}
    if spec.stage == "student_training" and spec.store is None:
        for item in spec.consumes:
            if item.stage in schema.TEACHER_STAGES and item.root != spec.root:
                place = f"{item.root}/consumers/{item.stage}/{item.name}/{item.version}"
                found.setdefault(item.root, []).append(place)
    return found


def gpus_of(spec: StageSpec) -> int | None:
    """How many GPUs of a host a stage uses; None: all that it is given."""
    params = spec.params
    if spec.stage == "teacher_logits":
        return spec.runs.get("processes")
    if spec.stage == "teacher_generation":
        return params.get("generation", {}).get("tensor_parallel") or 1
    if spec.stage == "student_training":
        return params.get("training", {}).get("processes") or 1
    # What runs on the CPU is metered with one: its host waits for it.
    return 1 if spec.stage in ("preprocess", "contamination", "evaluation", "reference_logprobs") else None


@contextlib.contextmanager
def own_gpus(count: int | None, what: str) -> Iterator[dict[str, int]]:
    """Hide all but ``count`` of this process's GPUs (None: of none) from ``what``, which does not use them: they
    are not metered as its own, and not locked. Yields what the sidecar's results say of it. To be entered before CUDA
    is initialised."""
    found = None if count is None else narrowed_to(count)
    if found is None:
        yield {}
        return
    name, before = "CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ[name], given = found
    _say(f"{what}: given {given} GPUs, takes {count} ({found[0]}); the others are not metered")
    try:
        yield {"gpus_given": given, "gpus_metered": count}
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _make(
    spec: StageSpec, main: Callable[[StageContext], dict | None], store: Any, used: dict[str, int]
) -> schema.Sidecar:
    out, attempts = Path(spec.folder), Path(spec.attempts)
    out.mkdir(parents=True, exist_ok=True)
    work = attempts / "work"
    work.mkdir(parents=True, exist_ok=True)
    inputs = _checked_inputs(spec, store)
    (attempts / DONE_NAME).unlink(missing_ok=True)
    meter = _meter(spec, attempts, inputs)
    with meter:
        with meter.phase("verify"):
            _verify(spec, inputs, store)
        for item in spec.consumes:
            key = (item.stage, item.name, item.version)
            if store is not None and item.root == str(store.mirror) and store.lacking(key):
                with meter.phase("teacher_store"):
                    store.fetch(key, _say)
        context = StageContext(spec, inputs, out, work, meter, _say)
        results = (main(context) or {}) | used
    _mark_done(out, attempts, results)
    return _commit(spec, out, attempts, results)


#: Beside the attempts: the stage's results and the files that it left, from the end of the work until the sidecar.
DONE_NAME = "done.json"


def _files(out: Path) -> dict[str, list[int]]:
    """Size and time of each file of an artifact that is not committed yet."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name not in (schema.SIDECAR_NAME, schema.POWER_NAME) and path.name[0] != ".":
            status = path.stat()
            found[path.relative_to(out).as_posix()] = [status.st_size, status.st_mtime_ns]
    return found


def _mark_done(out: Path, attempts: Path, results: dict[str, Any]) -> None:
    """Hashing 100 GB takes minutes: a kill until the sidecar stands must not cost the work again."""
    content = {"results": results, "files": _files(out)}
    atomic.write_text(attempts / DONE_NAME, json.dumps(content, default=str))


def _finished(out: Path, attempts: Path) -> dict[str, Any] | None:
    """The results of work that ended before its sidecar was written, if its files are as they were; else None."""
    try:
        content = json.loads((attempts / DONE_NAME).read_text(encoding="utf-8"))
        same = content["files"] == _files(out)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content["results"] if same else None


def _commit(spec: StageSpec, out: Path, attempts: Path, results: dict[str, Any]) -> schema.Sidecar:
    """Hash the files, fold the attempts and write the sidecar: what makes an artifact one."""
    from .energy import write_power

    record = _sidecar(spec, out, attempts, results)
    write_power(attempts, out / schema.POWER_NAME)
    text = schema.dump(record)
    work = attempts / "work"
    # The copy beside the attempts survives Snakemake's removal of a rule's outputs before it runs again.
    atomic.write_text(attempts / schema.SIDECAR_NAME, text)
    atomic.write_text(out / schema.SIDECAR_NAME, text)
    (attempts / DONE_NAME).unlink(missing_ok=True)
    shutil.rmtree(check_inside(attempts, work), ignore_errors=True)
    return record


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _restore(out: Path, attempts: Path) -> schema.Sidecar | None:
    """The committed sidecar of this very version, if its files are whole: measured work is never done twice."""
    path = attempts / schema.SIDECAR_NAME
    if not path.exists():
        return None
    try:
        record = schema.read(path)
    except UserError as error:  # the copy is damaged; the attempts beside it still tell what was spent
        _say(f"{error}: making the artifact again")
        return None
    problem = damage(out, record)
    if problem is not None:
        _say(f"making the artifact again: {problem}")
        return None
    if not (out / schema.POWER_NAME).exists():
        from .energy import write_power

        write_power(attempts, out / schema.POWER_NAME)
    _say(f"the artifact is whole already; its sidecar is restored (to measure again, remove {out} and {attempts})")
    atomic.write_text(out / schema.SIDECAR_NAME, schema.dump(record))
    return record


def _checked_inputs(spec: StageSpec, store: Any = None) -> dict[str, Path]:
    """Folder of each input; its sidecar must be there and its files of the right size, or still to be pulled."""
    inputs = {}
    for item in spec.consumes:
        folder = Path(item.folder)
        record = schema.read(folder / schema.SIDECAR_NAME)
        inputs[item.role] = folder
        if store is not None and item.root == str(store.mirror):
            continue
        if (problem := lacking(folder, record)) is not None:
            raise UserError(f"{problem}; remove {folder} to remake it")
    return inputs


def _verify(spec: StageSpec, inputs: dict[str, Path], store: Any) -> None:
    """Raise UserError for an input whose content is not what its sidecar says: a flipped bit, another run's weights."""
    for item in spec.consumes:
        if store is not None and item.root == str(store.mirror):
            continue  # verified when it is fetched
        folder = inputs[item.role]
        if (problem := damage(folder, schema.read(folder / schema.SIDECAR_NAME))) is not None:
            raise UserError(f"{problem}; remove {folder} to remake it")


def _meter(spec: StageSpec, attempts: Path, inputs: dict[str, Path]) -> Any:
    from .energy import IdleBaseline, Meter, MeterConfig

    settings = spec.energy
    config = MeterConfig.of(settings)
    idle = IdleBaseline.read(inputs["prerun"] / "idle.parquet") if "prerun" in inputs else None
    identity = {"stage": spec.stage, "name": spec.name, "version": spec.version}
    return Meter(attempts_dir=attempts, config=config, identity=identity, idle=idle)


def _sidecar(spec: StageSpec, out: Path, attempts: Path, results: dict[str, Any]) -> schema.Sidecar:
    from .energy import attempts_of, co2e, fold_attempts
    from .energy.attempts import per_token
    from .energy.host import describe_hardware, describe_software
    from .models.peak import reached

    tries = attempts_of(attempts)
    energy, quality, tokens = fold_attempts(tries)
    grid, hardware = spec.energy["grid"], describe_hardware()
    prerun = next((Path(item.folder) for item in spec.consumes if item.role == "prerun"), None)
    seconds, gpus = schema.wall_seconds(tries), [gpu.name for gpu in hardware.gpus]
    return schema.Sidecar(
        stage=spec.stage,
        name=spec.name,
        version=spec.version,
        recipe=spec.recipe,
        params=spec.params,
        labels=spec.labels,
        consumes=[schema.Consumed(role=i.role, stage=i.stage, name=i.name, version=i.version) for i in spec.consumes],
        produces=produced(out),
        attempts=tries,
        energy=energy,
        quality=quality,
        tokens=tokens,
        j_per_token=per_token(energy.gross_j, energy.reason, tokens),
        co2e=co2e(
            energy.gross_j,
            pue=spec.energy["pue"],
            country=grid["country"],
            region=grid["region"],
            intensity=grid["g_per_kwh"],
            intensity_source=grid["source"],
        ),
        hardware=hardware,
        software=describe_software(),
        seed=spec.seed,
        results=results | reached(results.get("flops"), seconds, gpus, prerun),
        created_utc=dt.datetime.now(dt.UTC).isoformat(),
    )


def _remote_store(spec: StageSpec) -> Any:
    """The object store that the stage writes to or reads from, or None."""
    roots = [spec.root] if spec.stage in schema.TEACHER_STAGES else []
    roots += [item.root for item in spec.consumes if item.stage in schema.TEACHER_STAGES]
    if spec.store is None or not roots:
        return None
    from .store.remote import Remote

    return Remote(spec.store, roots[0])


def _share(spec: StageSpec, record: schema.Sidecar, store: Any) -> None:
    """Push a teacher artifact; tell a teacher store outside this workflow's results of its consumer. Idempotent."""
    if store is not None and spec.root == str(store.mirror):
        store.push(spec.key, record, _say)
    if spec.stage != "student_training":
        return
    if store is not None:
        store.register(record, spec.root)
        return
    for root in _shared_folders(spec):
        with shared_modes(root):
            register(root, record, spec.root)


@contextlib.contextmanager
def _logging(path: str | None):
    """Copy what the stage prints to the job's log; the terminal still sees it."""
    if path is None:
        yield
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", buffering=1) as handle:
        tee = _Tee(sys.stderr, handle)
        with contextlib.redirect_stderr(tee):
            yield


class _Tee:
    """Writes to two streams; only the first is asked whether it is a terminal."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second

    def write(self, text: str) -> int:
        self.first.write(text)
        return self.second.write(text)

    def flush(self) -> None:
        self.first.flush()
        self.second.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.first, name)
