"""One stage and shape, measured in a process of its own: what a unit of its work takes, and what each execution adds.

``python -m distill_energy.forecast.bench JOB.json OUT.json``. The stage's own code does the work on random weights;
only what it would read is made up where it is not there. A process a case, since a stage is one: its start is part of
what it costs, its memory is its own, and what does not fit ends no other.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from ..config.evaluation import Inference
from ..config.params import read_params
from ..config.sources import Generation, Logits
from ..errors import UserError
from ..stage import let_threads_sleep

#: Repeats whose spread makes the interval, and seconds of one at least: counters step ten times a second.
REPEATS, LEAST_S = 4, 1.5
#: Lengths that are drawn where no data are at hand: median and spread of a lognormal, as shares of max_length.
MEDIAN, SPREAD, RESPONSE = 0.45, 0.5, 0.55
#: Seconds that the first unit may take (kernels are compiled in it) and a second still follows, whatever the budget.
WARM_S = 90.0
SEED = 0
#: Parameters up to which a student is saved, and weights are hashed, as the stages do at their end and start.
SAVED = 2_000_000_000
#: What transformers loads late, at a model's or tokenizer's making: part of a start, as in ``warm``.
LIBRARIES = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)
QUIET = 0.1  # share of the processors that others may keep busy before it is said
NEW_TOKENS = 64  # decoded at a time at most, where an answer would be longer
PROBE = 4  # tokens that say how many can be decoded in the time there is


class Bench:
    """The meter of a case, and what was measured. ``budget_s``: seconds for its windows, all kinds together."""

    def __init__(self, job: dict[str, Any], meter: Any) -> None:
        self.job, self.meter = job, meter
        self.budget_s = float(job["budget_s"])
        self.windows: list[dict[str, Any]] = []
        self.fixed: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Any]:
        with self.meter.phase(name) as handle:
            yield handle
            synchronise()

    @contextmanager
    def part_of_each(self, name: str) -> Iterator[None]:
        """What every execution of the stage does once, whatever its tokens: load, save. Its ``start``, the libraries,
        is booked apart: a warm process spares it."""
        with self.phase(name) as handle:
            if name == "start":  # what a warm process has loaded already
                for library in LIBRARIES:
                    importlib.import_module(library)
            yield
        self.add("start" if name == "start" else "each", handle.wall_s, handle.joules)

    def add(self, kind: str, seconds: float, joules: float | None) -> None:
        """Book what an execution takes beside its tokens; None joules are unknown from then on."""
        part = self.fixed.setdefault(kind, {"seconds": 0.0, "joules": 0.0})
        part["seconds"] += max(seconds, 0.0)
        known = part["joules"] is not None and joules is not None
        part["joules"] = part["joules"] + max(joules, 0.0) if known else None

    def repeat(self, kind: str, work: Callable[[], int], share: float = 1.0, **facts: Any) -> list[dict[str, Any]]:
        """Windows of ``work()``, which returns the tokens it did, for ``share`` of the budget. The first unit warms up:
        what it costs above the others belongs to each execution."""
        budget = share * self.budget_s
        begin = time.monotonic()
        with self.phase(f"{kind}: warm-up") as warm:
            tokens = work()
        first = {"tokens": tokens, "seconds": warm.wall_s, "joules": warm.joules}
        found: list[dict[str, Any]] = []
        if warm.wall_s < max(budget, WARM_S):
            least = max(LEAST_S, (budget - warm.wall_s) / (REPEATS + 1))
            while len(found) < REPEATS and (not found or time.monotonic() - begin + found[-1]["seconds"] < budget):
                done = 0
                with self.phase(kind) as handle:
                    start = time.monotonic()
                    while not done or time.monotonic() - start < least:
                        done += work()
                        synchronise()
                found.append({"tokens": done, "seconds": handle.wall_s, "joules": handle.joules})
        if found:
            total = sum(w["tokens"] for w in found)
            seconds = sum(w["seconds"] for w in found) / total
            spent = [w["joules"] for w in found]
            joules = None if None in spent or first["joules"] is None else sum(spent) / total
            over = None if joules is None else first["joules"] - joules * tokens
            self.add("each", first["seconds"] - seconds * tokens, over)
        else:
            self.notes.append(f"{kind}: one unit took {warm.wall_s:.0f} s, more than its time: no repeat, no interval")
            found = [first]
        rows = [{"kind": kind, **facts, **window} for window in found]
        self.windows += rows
        return rows


def silent(message: str) -> None:
    """The log of work that nobody reads."""


class Neighbours:
    """What share of this host's processors other processes keep busy: they make the work slower and its joules more."""

    def __init__(self) -> None:
        self.begin, self.busy, self.own = time.monotonic(), busy_seconds(), time.process_time()

    def share(self) -> float:
        """Since the start, of all processors; the meter's own sampler is among the others."""
        spent = busy_seconds() - self.busy - (time.process_time() - self.own)
        return max(spent, 0.0) / ((time.monotonic() - self.begin) * (psutil.cpu_count() or 1))


def busy_seconds() -> float:
    """Processor seconds of everything on this host since it started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """Most memory that was held: of the GPU where there is one, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- what a stage would read ------------------------------------------------------------------------------------------


def lengths(count: int, longest: int, seed: int = SEED) -> Any:
    """Token counts of made-up examples."""
    import numpy as np

    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN * longest), SPREAD, count)
    return np.clip(drawn, min(8, longest), longest).astype(int)


def write_examples(path: Path, wholes: Any, prompts: Any, vocabulary: int, seed: int = SEED) -> None:
    """Examples of random token ids with these lengths; the rest after the prompt are labels."""
    import numpy as np
    import pyarrow as pa

    from ..store.atomic import write_parquet

    random = np.random.default_rng(seed)
    rows = [random.integers(3, min(vocabulary, 384), n).tolist() for n in wholes]
    masks = [[0] * p + [1] * (n - p) for n, p in zip(wholes, prompts, strict=True)]
    ids, bits = pa.list_(pa.int32()), pa.list_(pa.uint8())
    columns = {
        "id": pa.array([f"{path.stem}{i}" for i in range(len(rows))]),
        "prompt": pa.array([""] * len(rows)),
        "response": pa.array([""] * len(rows)),
        "input_ids": pa.array(rows, ids),
        "loss_mask": pa.array(masks, bits),
        "prompt_ids": pa.array([row[:p] for row, p in zip(rows, prompts, strict=True)], ids),
    }
    write_parquet(path, pa.table(columns))


def data_of(job: dict[str, Any], vocabulary: int, count: int) -> Path:
    """A folder with train and validation: some of the data's own rows where they are at hand, else made-up ones."""
    import pyarrow.parquet as pq

    from ..store.atomic import write_parquet

    real, folder = job.get("data"), Path(job["work"]) / "data"
    for split, rows in (("train", count), ("validation", 64)):
        if real:
            table = pq.read_table(Path(real) / f"{split}.parquet").slice(0, rows)
            write_parquet(folder / f"{split}.parquet", table.replace_schema_metadata(None))
        else:
            wholes = lengths(rows, job["max_length"], SEED + len(split))
            prompts = [max(1, int(n * (1 - RESPONSE))) for n in wholes]
            write_examples(folder / f"{split}.parquet", wholes, prompts, vocabulary)
    return folder


def answered(job: dict[str, Any], data: Path, vocabulary: int) -> Path:
    """The data's prompts with made-up answers of the lengths that a teacher's would have."""
    import pyarrow.parquet as pq

    folder = Path(job["work"]) / "answers"
    for split in ("train", "validation"):
        rows = pq.read_table(data / f"{split}.parquet", columns=["prompt_ids"]).to_pylist()
        prompts = [len(row["prompt_ids"]) for row in rows]
        answers = lengths(len(prompts), job["answer_tokens"], SEED + 1)
        longest = job["max_length"]
        wholes = [min(p + max(int(a / MEDIAN * 0.75), 1), longest) for p, a in zip(prompts, answers, strict=True)]
        prompts = [min(p, n - 1) for p, n in zip(prompts, wholes, strict=True)]
        write_examples(folder / f"{split}.parquet", wholes, prompts, vocabulary)
    return folder


def paired(job: dict[str, Any], data: Path, vocabulary: int) -> dict[str, Path]:
    """Inputs of a training on pairs: made-up answers, and made-up log-probabilities of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..store.atomic import write_parquet
    from ..train.pairs import LABELS, SCORES, read_pairs

    work = Path(job["work"])
    inputs = {"chosen": answered(job, data, vocabulary), "rejected": work / "rejected"}
    for split in ("train", "validation"):
        table = pq.read_table(inputs["chosen"] / f"{split}.parquet")
        rows = table.to_pylist()
        for row in rows:  # the same prompts, other tokens after them
            prompt = len(row["prompt_ids"])
            row["input_ids"][prompt:] = [token - 1 for token in row["input_ids"][prompt:]]
        write_parquet(inputs["rejected"] / f"{split}.parquet", pa.Table.from_pylist(rows, schema=table.schema))
    for split in ("train", "validation"):
        pairs = read_pairs(inputs["chosen"], inputs["rejected"], split, vocabulary)
        counts = pairs.sequence_labels.reshape(-1, 2)
        columns = {"id": pa.array(pairs.ids)}
        columns |= {name: pa.array(-3.0 * counts[:, i]) for i, name in enumerate(SCORES)}
        columns |= {name: pa.array(counts[:, i]) for i, name in enumerate(LABELS)}
        write_parquet(work / "reference" / f"{split}.parquet", pa.table(columns))
    return inputs | {"reference": work / "reference"}


def cached(job: dict[str, Any], folder: Path, vocabulary: int, device: str) -> Path:
    """A logit cache of random distributions over a folder's examples, by the project's own writer."""
    import numpy as np
    import torch

    from ..kd.cache.codec import pack
    from ..kd.cache.encode import encode_rows, uniforms
    from ..kd.cache.spec import CacheSpec
    from ..kd.cache.writer import CacheWriter
    from ..models.fingerprint import tokenizer_hash
    from ..models.sources import load_tokenizer
    from ..teacher.logits import load_examples

    examples = load_examples(folder / "train.parquet")
    spec = CacheSpec.of(Logits.model_validate({**job["logits"], "seed": SEED}), vocabulary)
    out = folder.with_name(f"{folder.name}-cache")
    out.mkdir(parents=True, exist_ok=True)
    same = tokenizer_hash(load_tokenizer({"source": "shaped"}, {}))
    known = dict.fromkeys(("teacher_sha256", "template_sha256", "data_sha256"), "made up")
    writer = CacheWriter(
        out, spec, examples.ids, examples.n_labels, {"model": "{}", "tokenizer_sha256": same, "dtype": "", **known}
    )
    random = torch.Generator(device=device).manual_seed(SEED)
    logits = torch.randn(1024, vocabulary, device=device, generator=random).mul_(3)
    for index in list(writer.missing):
        rows = []
        for i in range(*writer.plan[index]):
            n = examples.n_labels[i]
            labels = torch.from_numpy(examples.tokens[i][examples.labels[i]].astype(np.int64)).to(device)
            drawn = logits[torch.arange(n, device=device) % len(logits)]
            rows.append(pack(encode_rows(drawn, spec, uniforms(SEED, examples.ids[i], n), labels), spec))
        writer.write(index, rows, [])
    return out


# --- the stages -------------------------------------------------------------------------------------------------------


def logits(bench: Bench) -> None:
    """``teacher_logits``: shards through the stage's own maker, audits in proportion. Kind ``forward``."""
    job, params = bench.job, bench.job["params"]
    with bench.part_of_each("start"):
        import torch

        from ..kd.cache.spec import CacheSpec
        from ..kd.cache.writer import CacheWriter
        from ..models.fingerprint import weights_hash
        from ..models.flops import flops_of_forward
        from ..models.sources import load_model
        from ..teacher.logits import Teacher, load_examples, make_shard
        from .shapes import shaped
    with bench.part_of_each("load"):
        spec = shaped(params["model"], inputs_of(job))
        device = "auto" if torch.cuda.is_available() else None
        teacher = Teacher(load_model(spec, {}, dtype=params.get("dtype", "auto"), device=device), 0)
        count = bench.facts["parameters"] = parameters(teacher.model)
        if count < SAVED:
            weights_hash(teacher.model)
    settings = Logits.model_validate({**params["logits"], "seed": SEED})
    cache = CacheSpec.of(settings, teacher.vocabulary)
    with bench.phase("data"):
        unit = settings.batch_tokens
        examples = load_examples(data_of(job, teacher.vocabulary, 512) / "train.parquet")
    sizes = [len(row) for row in examples.tokens]
    whole = min(settings.shard_examples, job["n_train"])
    rows_each = max(1, min(whole, round(unit * len(sizes) / sum(sizes))))
    audits = max(1, round(settings.audit_examples * rows_each / whole))
    todo: list[tuple[Any, int]] = []
    caches = 0

    def shard() -> int:
        """A shard of about one batch, from the teacher to the disk."""
        nonlocal caches
        if not todo:
            caches += 1
            folder = Path(job["work"]) / f"cache-{caches}"
            folder.mkdir(parents=True)
            writer = CacheWriter(folder, cache, examples.ids, examples.n_labels, {}, max_examples=rows_each)
            todo.extend((writer, index) for index in writer.missing)
        writer, index = todo.pop(0)
        span = writer.plan[index]
        rows, found = make_shard(teacher, cache, examples, span, settings.batch_tokens, audits, Uncounted())
        writer.write(index, rows, found)
        return sum(sizes[slice(*span)])

    with torch.inference_mode():
        teacher.check()
        bench.repeat("forward", shard, batch=settings.batch_tokens)
    labels = sum(examples.n_labels) / len(examples)
    one = flops_of_forward(teacher.model, sizes, sum(examples.n_labels))
    bench.facts |= {"tokens_per_example": sum(sizes) / len(sizes), "labels_per_example": labels}
    bench.facts["flops_per_token"] = {"forward": per(one["flops"], sum(sizes))}


def generation(bench: Bench) -> None:
    """``teacher_generation``: batches of prompts answered by transformers. Kinds ``forward`` (prompts) and ``generate``
    (tokens after the first, a batch's prefill taken off)."""
    job, params = bench.job, bench.job["params"]
    settings = Generation.model_validate(params["generation"])
    with bench.part_of_each("start"):
        import pyarrow.parquet as pq
        import torch

        from ..models.flops import flops_of_generation
        from ..models.sources import load_model, load_tokenizer
        from ..teacher.generation.jobs import Prompt
        from ..teacher.generation.transformers_engine import Sampling, TransformersEngine
        from .shapes import shaped
    with bench.part_of_each("load"):
        spec = shaped(params["model"], inputs_of(job))
        model = load_model(spec, {}, dtype=params.get("dtype", "auto"), device=None)
        bench.facts["parameters"] = parameters(model)
    if settings.engine != "transformers":
        bench.notes.append(f"by transformers: the configuration's engine, {settings.engine}, has other rates")
    with bench.phase("data"):
        folder = data_of(job, model.get_input_embeddings().weight.shape[0], max(64, settings.batch_size))
        rows = pq.read_table(folder / "train.parquet", columns=["prompt_ids"]).to_pylist()
    size = settings.batch_size
    many = sorted((tuple(row["prompt_ids"]) for row in rows), key=len)
    sampling = Sampling(settings.temperature, settings.top_p, size)
    engine = TransformersEngine(model, load_tokenizer(spec, {}), sampling)
    engine.stops = [-1]  # nothing that is drawn ends an answer: batches run in lock step until the last one has
    made = [0, 0]

    def answer(room: int) -> int:
        middle = (len(many) - size) // 2
        batch = [Prompt(str(i), row, "", room) for i, row in enumerate(many[max(middle, 0) : max(middle, 0) + size])]
        made[:] = [sum(len(p.prompt_ids) for p in batch), sum(len(a.ids) for a in engine.answer(batch, SEED))]
        return made[0] if room == 1 else made[1] - len(batch)

    while True:  # a cache of keys and values that does not fit: half the batch
        try:
            begin = time.monotonic()
            answer(PROBE)
            answer(PROBE)  # the first compiles and allocates
            took = (time.monotonic() - begin) / 2
            fill = bench.repeat("forward", lambda: answer(1), 0.25, batch=size)
            affords = int(PROBE * 0.75 * bench.budget_s / ((REPEATS + 1) * took))
            new = max(2, min(settings.max_new_tokens, NEW_TOKENS, max(PROBE, affords)))
            whole = bench.repeat("generate", lambda n=new: answer(n), 0.75, batch=size)
            break
        except torch.OutOfMemoryError:
            bench.windows.clear()
            torch.cuda.empty_cache()
            if size == 1:
                raise
            size //= 2
            sampling.batch_size = size
    if size < settings.batch_size:
        bench.notes.append(f"batches of {size}: {settings.batch_size} of the configuration do not fit the memory")
    if new < settings.max_new_tokens:
        bench.notes.append(f"{new} new tokens at a time, the configuration has {settings.max_new_tokens}")
    prompt, n = made[0], made[1] - size
    units = [w["tokens"] / n for w in whole]
    take_off(whole, fill, prompt, units)
    one = flops_of_generation(model, [prompt / size] * size, [new] * size)
    bench.facts["flops_per_token"] = {"forward": per(one.get("flops_prefill"), prompt)}
    bench.facts["flops_per_token"]["generate"] = per(one.get("flops_decode"), n)


def take_off(whole: list[dict[str, Any]], fill: list[dict[str, Any]], prompt: int, units: list[float]) -> None:
    """Take the prefill of its batches off each decoding window."""
    tokens = sum(w["tokens"] for w in fill)
    for name in ("seconds", "joules"):
        spent = [w[name] for w in fill]
        for window, batches in zip(whole, units, strict=True):
            known = None not in spent and window[name] is not None
            window[name] = window[name] - batches * prompt * sum(spent) / tokens if known else None


def reference(bench: Bench) -> None:
    """``reference_logprobs``: batches of pairs through the stage's own pass. Kind ``forward``."""
    job, params = bench.job, bench.job["params"]
    with bench.part_of_each("start"):
        import numpy as np
        import torch

        from ..models.flops import flops_of_forward
        from ..models.sources import load_model
        from ..train.learner import reference_student
        from ..train.logprobs import MICRO_TOKENS, log_probabilities
        from ..train.pairs import read_pairs
        from ..train.processes import device_of
        from .shapes import shaped
    device = device_of("cuda" if torch.cuda.is_available() else "cpu", 0)
    with bench.part_of_each("load"):
        spec = shaped(params["model"], inputs_of(job))
        student = reference_student(params["precision"], lambda dtype: load_model(spec, {}, dtype, device))
        bench.facts["parameters"] = parameters(student.lm)
    vocabulary = spec["config"]["vocab_size"]
    with bench.phase("data"):
        made = paired(job, data_of(job, vocabulary, 512), vocabulary)
        pairs = read_pairs(made["chosen"], made["rejected"], "train", vocabulary)
    some = pairs.at(np.arange(min(len(pairs), max(1, MICRO_TOKENS // int(pairs.lengths().mean())))))
    sizes = some.sequences(np.arange(len(some)))

    def batch() -> int:
        log_probabilities(student, some, Uncounted(), device)
        return int(sizes.sum())

    bench.repeat("forward", batch, batch=len(some))
    one = flops_of_forward(student.lm, sizes.tolist(), int(some.label_counts().sum()))
    bench.facts["flops_per_token"] = {"forward": per(one["flops"], int(sizes.sum()))}


def training(bench: Bench) -> None:
    """``student_training``: steps of the stage's own loop. Kinds ``train``, ``forward`` (its evaluations)
    and ``keep`` (the copy of the best weights)."""
    job, params = bench.job, json.loads(json.dumps(bench.job["params"]))
    with bench.part_of_each("start"):
        import torch

        from .. import pipelines
        from ..kd.losses.ce import kernel_version
        from ..models.flops import flops_of_training
        from ..models.sources import load_tokenizer
        from ..train.budget import GOLD_SHARE, OWN_SHARE, evaluation_rows
        from ..train.job import Job, Peers
        from ..train.memory import keep_freed_memory
        from ..train.processes import device_of
        from ..train.reference import loop_of
        from ..train.run import save_student
        from .shapes import shaped
    device = device_of("cuda" if torch.cuda.is_available() else "cpu", 0)
    kind = pipelines.get(params["pipeline"]["kind"])
    with bench.phase("data"):
        params["model"] = shaped(params["model"], inputs_of(job))
        if params.get("teacher"):
            params["teacher"] = shaped(params["teacher"], inputs_of(job, "teacher"))
        vocabulary = params["model"]["config"]["vocab_size"]
        load_tokenizer({"source": "shaped"}, {})
        batch = params["training"]["batch_size"]
        inputs = {"data": data_of(job, vocabulary, max(96, 4 * batch))}
        if kind.rows != "data":
            inputs["teacher_generation"] = answered(job, inputs["data"], vocabulary)
        if kind.pairs:
            inputs |= paired(job, inputs["data"], vocabulary)
        elif kind.needs == "teacher_logits":
            inputs["teacher_logits"] = cached(job, inputs[kind.rows], vocabulary, device)
    if device == "cpu":
        keep_freed_memory()
    told = read_params("student_training", params)
    recipe, endless = told.training, dict.fromkeys(("max_steps", "eval_every", "checkpoint_every"), 1_000_000)
    told = told.model_copy(update={"training": recipe.model_copy(update=endless)})
    with bench.part_of_each("load"):
        work = Path(job["work"]) / "training"
        task = Job(told, inputs, work, Uncounted(), silent, "rates", "", None, Peers(device=device))
        loop = loop_of(task)
        learner, data = loop.learner, loop.data
        bench.notes += [learner.precision.note] if learner.precision.note else []
        loop.gold = data.gold_rows(evaluation_rows(recipe, GOLD_SHARE))
        loop.own = data.own_rows(evaluation_rows(recipe, OWN_SHARE))
    bench.facts["parameters"] = learner.parameters
    checked = sum(int(rows.lengths().sum()) for rows in (loop.gold, loop.own) if rows is not None)

    def step() -> int:
        before = loop.state.tokens
        loop._step()
        return loop.state.tokens - before

    def evaluate() -> int:
        for rows in filter(None, (loop.gold, loop.own)):
            loop._mean_loss(rows)
        return checked

    try:
        bench.repeat("train", step, 0.75, batch=recipe.batch_size)
        bench.repeat("forward", evaluate, 0.25)
        labels = data.train.label_counts()
        steps = [loop.sampler.batch(i) for i in range(loop.state.step)]
        if loop.live is None:
            batches = ((data.train.sequences(index), int(labels[index].sum())) for index in steps)
            again = recipe.gradient_checkpointing
            one = flops_of_training(learner.student.lm, batches, (), again, learner.adapted, kind.pairs)
            bench.facts["flops_per_token"] = {"train": per(one.get("flops"), loop.state.tokens)}
        with bench.phase("keep") as kept:  # a copy of the weights at each evaluation that is the best so far
            loop.best.keep(learner, loop.state.step)
        bench.windows.append({"kind": "keep", "tokens": None, "seconds": kept.wall_s, "joules": kept.joules})
        if learner.parameters < SAVED:
            with bench.part_of_each("save"):
                save_student(learner, loop.final_weights(), Path(job["work"]) / "student")
        else:
            bench.notes.append("its weights were not saved: too large for a trial")
    finally:
        loop.feed.close()
    bench.facts |= {
        "precision": learner.precision.used,
        "kernel": kernel_version(learner.settings.ce_kernel),
        "tokens_per_example": float(data.train.lengths().mean()),
        "evaluation_tokens": checked,
    }


def evaluation(bench: Bench) -> None:
    """``evaluation``: prefill (kind ``forward``) and decoding (``generate``) at the configuration's lengths, and the
    project's own benchmarks whole (kind ``benchmarks``) where there is a tokenizer."""
    job, params = bench.job, bench.job["params"]
    with bench.part_of_each("start"):
        import torch

        from ..evaluate.inference import inference
        from ..evaluate.session import Session
        from ..evaluate.stage import run_suite
        from ..models.flops import flops_of_generation
        from ..models.sources import load_model, load_tokenizer
        from .shapes import shaped
    with bench.part_of_each("load"):
        spec = shaped(params["model"], inputs_of(job))
        if job.get("tokenizer"):
            spec["tokenizer"] = job["tokenizer"]
        model = load_model(spec, {}, params["dtype"])
        tokenizer = load_tokenizer(spec, {})
        bench.facts["parameters"] = parameters(model)
    cell = job["cell"]
    size = cell["batch_size"]

    def session() -> Any:
        work = Path(job["work"]) / "evaluation"
        return Session(model, tokenizer, bench.meter, silent, {}, "teacher", params["dtype"], work=work)

    def inferred(least: float) -> list[dict[str, Any]]:
        sizes = {k: cell[k] for k in ("prompt_tokens", "new_tokens")}
        setting = Inference(kind="inference", batch_sizes=(size,), prompts=8, **sizes, min_seconds=least)
        return inference(session(), "inference", setting)[1]

    while True:
        try:
            begin = time.monotonic()
            inferred(0.0)
            break
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if size == 1:
                raise
            size //= 2
    once, own = time.monotonic() - begin, job.get("own") or {}
    if size < cell["batch_size"]:
        bench.notes.append(f"batches of {size}: {cell['batch_size']} of the configuration do not fit the memory")
    share = 0.6 if own else 1.0
    repeats = max(1, min(REPEATS, int(share * bench.budget_s / max(once, 4 * LEAST_S))))
    for _ in range(repeats):
        for row in inferred(max(LEAST_S, 0.2 * share * bench.budget_s / repeats)):
            kind = "forward" if row["phase"] == "prefill" else "generate"
            bench.windows.append({"kind": kind, "batch": size} | {k: row[k] for k in ("tokens", "seconds", "joules")})
    begin = time.monotonic()
    for turn in range(REPEATS if own else 0):
        took = time.monotonic() - begin
        if turn > 1 and took * (turn + 1) / turn > (1 - share) * bench.budget_s:
            break
        ours = session()
        run_suite(ours, read_params("evaluation", {"model": {}, "benchmarks": own}).benchmarks)
        spent = [part for parts in ours.spent.values() for part in parts]
        joules = None if any(part.joules is None for part in spent) else sum(part.joules for part in spent)
        seconds = sum(part.seconds for part in spent)
        if turn:  # the first warms up
            bench.windows.append({"kind": "benchmarks", "tokens": None, "seconds": seconds, "joules": joules})
    bench.facts["benchmarks"] = sorted(own)
    one = flops_of_generation(model, [cell["prompt_tokens"]] * size, [cell["new_tokens"] + 1] * size)
    bench.facts["flops_per_token"] = {
        "forward": per(one.get("flops_prefill"), size * cell["prompt_tokens"]),
        "generate": per(one.get("flops_decode"), size * cell["new_tokens"]),
    }


def prerun(bench: Bench) -> None:
    """``prerun``: idle power and that of matrix products. Kinds ``idle`` and ``matmul``."""
    job = bench.job
    with bench.part_of_each("start"):
        import torch

        from ..energy import IdleBaseline, MeterConfig, measure_idle
        from ..models.sources import model_dtype
        from ..prerun import calibrate

        torch.ones(8, 8).to(model_dtype("auto"))
    config = MeterConfig(**job["energy"])
    with bench.phase("idle") as idle:
        baseline = measure_idle(config, job["idle_seconds"])
    bench.windows.append({"kind": "idle", "tokens": None, "seconds": idle.wall_s, "joules": idle.joules})
    known: IdleBaseline = baseline
    bench.facts["idle"] = known.as_dict()
    begin = time.monotonic()
    with bench.phase("load") as all_of_it:
        rows = calibrate(SimpleNamespace(meter=bench.meter), job["calibration_seconds"])
    row = rows[0]
    bench.facts |= {"matmul_flops_per_s": row["flops_per_s"], "dtype": row["dtype"], "device": row["device"]}
    bench.windows.append({"kind": "matmul", "tokens": None, "seconds": row["seconds"], "joules": None})
    if row["watts"] is not None:
        bench.windows[-1]["joules"] = row["watts"] * row["seconds"]
        bench.add(
            "each",
            time.monotonic() - begin - row["seconds"],
            None if all_of_it.joules is None else all_of_it.joules - row["watts"] * row["seconds"],
        )


def preprocess(bench: Bench) -> None:
    """``preprocess``: the stage itself, whole or on fewer rows: what each execution takes."""
    job = bench.job
    out, params = Path(job["out"]), job["params"]
    out.mkdir(parents=True, exist_ok=True)
    given = SimpleNamespace(params=params, name=job["name"])
    told = read_params("preprocess", params)
    context = SimpleNamespace(spec=given, params=told, inputs=inputs_of(job), out=out, meter=Uncounted(), log=silent)
    with bench.part_of_each("start"):
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
        import torch  # noqa: F401

        from ..data.stage import main as encode
        from ..models import sources  # noqa: F401
        from ..models.stage import main
    if "dataset" not in params:
        with bench.part_of_each("convert"):
            main(context)
        return
    with bench.part_of_each("rows"):
        encode(context)
    table = pq.read_table(out / "train.parquet", columns=["input_ids", "loss_mask"])
    bench.facts["rows_of_stage"] = job["rows_of_stage"]
    bench.facts["tokens_per_example"] = pc.sum(pc.list_value_length(table["input_ids"])).as_py() / table.num_rows
    bench.facts["labels_per_example"] = pc.sum(pc.list_flatten(table["loss_mask"])).as_py() / table.num_rows
    bench.facts["rows"] = table.num_rows


class Uncounted:
    """A stage's meter where the bench does the metering: its phases are not booked apart."""

    @contextmanager
    def phase(self, name: str) -> Iterator[Any]:
        yield SimpleNamespace(joules=None, wall_s=None, source=None, reason=None)

    def add_tokens(self, kind: str, n: int) -> None:
        """Tokens are those of the windows."""

    def joules(self) -> None:
        return None


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def per(amount: float | None, tokens: float) -> float | None:
    return amount / tokens if amount is not None and tokens else None


def inputs_of(job: dict[str, Any], role: str = "model") -> dict[str, Path]:
    found = (job.get("inputs") or {}).get(role)
    return {"model": Path(found)} if found else {}


STAGES = {
    "prerun": prerun,
    "preprocess": preprocess,
    "teacher_logits": logits,
    "teacher_generation": generation,
    "reference_logprobs": reference,
    "student_training": training,
    "evaluation": evaluation,
}


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """Run a case under the meter. Returns windows, fixed part, facts; ``failed`` says why there are none."""
    from ..energy import IdleBaseline, Meter, MeterConfig

    idle = IdleBaseline.from_dict(job["idle"]) if job.get("idle") else None
    config = MeterConfig(**job["energy"])
    if job["stage"] == "prerun":
        config = replace(config, exclusive=False)
    identity = {"stage": "rates", "name": job["name"], "version": ""}
    failed, memory = None, False
    with Meter(Path(job["work"]) / "attempts", config, identity, idle) as meter:
        bench, neighbours = Bench(job, meter), Neighbours()
        try:
            STAGES[job["stage"]](bench)
        except UserError as error:
            failed = str(error)
        except (RuntimeError, MemoryError) as error:
            torch = sys.modules["torch"]
            memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower()
            memory = memory or "can't allocate memory" in str(error)
            failed = " ".join(str(error).split())[:200]
        bench.facts["neighbours"] = neighbours.share()
        bench.facts["threads"] = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    if bench.facts["neighbours"] > QUIET:
        bench.notes.append(f"others kept {bench.facts['neighbours']:.0%} of the processors busy")
    from ..energy.host import describe_hardware, describe_software

    attempt = meter.attempt
    known = [c for c in attempt.components if c.in_total] if attempt else []
    idle_j = [c.idle_j for c in known]
    return {
        "windows": bench.windows,
        "fixed": bench.fixed,
        "facts": bench.facts,
        "notes": list(dict.fromkeys(bench.notes)),
        "failed": failed,
        "out_of_memory": memory,
        "peak_bytes": peak_bytes(),
        "idle_watts": sum(idle_j) / attempt.wall_s if idle_j and None not in idle_j else None,
        "methods": sorted({f"{c.component} {c.method}" for c in known if c.gross_j is not None}),
        "source": sorted({c.source for c in known}),
        "hardware": describe_hardware().model_dump(mode="json"),
        "software": describe_software().model_dump(mode="json"),
    }


def main(arguments: list[str] | None = None) -> int:
    """Entry of the process."""
    job_path, out_path = sys.argv[1:] if arguments is None else arguments
    let_threads_sleep()
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    result = measured(job)
    Path(out_path).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
