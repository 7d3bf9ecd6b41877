"""How close to the card's limit: training steps and the teacher's cache, in real shapes with random weights.

    python benchmarks/gpu.py [--size 1b] [--teachers 1b 32b] [--seconds 280] [--out gpu.json]

No network, no weights, no data. The product's own loop and cache writer are measured beside (a) a plain transformers
loop with full logits, (b) Liger's distillation loss, where the package is installed, and (c) the formula of the paper's
harness. Cases run in turns until the time is spent; a row is the median of its turns. Energy is the card's own counter
through the product's meter; without one it is null. ``--size tiny`` runs all of it on a CPU, for the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow_scripts"))

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Olmo2Config

import distill_energy.train.learner as learner_module
from distill_energy.config.params import TrainingParams
from distill_energy.config.sources import Logits
from distill_energy.energy import Meter, MeterConfig
from distill_energy.kd.cache.codec import pack
from distill_energy.kd.cache.encode import encode_rows, uniforms
from distill_energy.kd.cache.spec import CacheSpec
from distill_energy.kd.cache.writer import CacheWriter
from distill_energy.kd.losses.reference import reference_kd_loss
from distill_energy.models.fingerprint import tokenizer_hash
from distill_energy.models.flops import flops_of_forward, flops_of_training
from distill_energy.models.tiny import tiny_tokenizer
from distill_energy.store.atomic import write_parquet
from distill_energy.teacher.logits import Examples, Teacher, length_batches, load_examples, make_shard
from distill_energy.train.job import Job, Peers
from distill_energy.train.loop import Loop

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
#: Of OLMo-2 (hidden size, layers, width of the feed-forward part, heads, heads of keys and values).
SHAPES = {
    "32b": (5120, 64, 27648, 40, 8),
    "13b": (5120, 40, 13824, 40, 40),
    "1b": (2048, 16, 8192, 16, 16),
    "tiny": (64, 2, 128, 2, 2),
}


class Scale:
    """What follows from the size: vocabulary, longest example, examples a batch."""

    def __init__(self, size: str) -> None:
        tiny = size == "tiny"
        self.vocabulary = 4096 if tiny else 100352
        self.longest, self.batch = (64, 4) if tiny else (1024, 32)
        self.teacher_tokens = 256 if tiny else 16384


def config_of(size: str) -> Olmo2Config:
    hidden, layers, inner, heads, kv = SHAPES[size]
    return Olmo2Config(
        vocab_size=Scale(size).vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def random_model(size: str, dtype: torch.dtype) -> Any:
    """A model of the shape, drawn on the device. Logits are spread as a trained model's are."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(size), dtype=dtype)
    model = model.to_empty(device=DEVICE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0) if "norm" in name else weight.normal_(0, 0.02)
        model.get_output_embeddings().weight.mul_(3.0)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config).to(DEVICE)  # its buffers were on meta
    return model


class NoMeter:
    """The stage's meter inside a measured block: it counts nothing."""

    def add_tokens(self, kind: str, n: int) -> None: ...

    def joules(self) -> None: ...

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield None


def synchronize() -> None:
    if DEVICE != "cpu":
        torch.cuda.synchronize()


def measured(work: Callable[[], Any]) -> tuple[float, float | None]:
    """(seconds, joules of the GPUs' counters or None) of a piece of work."""
    config = MeterConfig(interval_s=0.2, cpu="off", exclusive=False)
    synchronize()
    with tempfile.TemporaryDirectory() as folder:
        with Meter(attempts_dir=folder, config=config, identity={"stage": "benchmark"}) as meter:
            begin = time.monotonic()
            work()
            synchronize()
            seconds = time.monotonic() - begin
        joules = [c.gross_j for c in meter.attempt.components if c.component == "gpu" and c.gross_j is not None]
    return seconds, sum(joules) if joules else None


def matmul_peak(n: int = 8192) -> float:
    """FLOP/s of (n × n)·(n × n) bfloat16 products of random numbers; the best of five groups of ten."""
    n = n if DEVICE != "cpu" else 256
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    best = 0.0
    for _ in range(5):
        synchronize()
        begin = time.perf_counter()
        for _ in range(10):
            a @ b
        synchronize()
        best = max(best, 10 * 2.0 * n**3 / (time.perf_counter() - begin))
    return best


# --- training ----------------------------------------------------------------------------------------------------


def write_data(folder: Path, scale: Scale) -> dict[str, Path]:
    """Examples of half to the whole length, two thirds of it labels, and their cache, by the product's own writer."""
    random = np.random.default_rng(1)
    (folder / "data").mkdir()
    for name, n in (("train", 4 * scale.batch), ("validation", 4)):
        lengths = random.integers(scale.longest // 2, scale.longest + 1, n)
        tokens = [random.integers(3, scale.vocabulary, length).tolist() for length in lengths]
        masks = [[0] * (length // 3) + [1] * (length - length // 3) for length in lengths]
        import pyarrow as pa

        columns = {"id": pa.array([f"e{i}" for i in range(n)])}
        columns["input_ids"] = pa.array(tokens, pa.list_(pa.int32()))
        columns["loss_mask"] = pa.array(masks, pa.list_(pa.uint8()))
        write_parquet(folder / "data" / f"{name}.parquet", pa.table(columns))
    examples = load_examples(folder / "data" / "train.parquet")
    spec = CacheSpec.of(Logits(head=32, tail=64), scale.vocabulary)
    (folder / "cache").mkdir()
    names = ("model", "teacher_sha256", "template_sha256", "data_sha256")
    provenance = {**dict.fromkeys(names, "random"), "dtype": "bfloat16"}
    provenance["tokenizer_sha256"] = tokenizer_hash(tiny_tokenizer())
    writer = CacheWriter(folder / "cache", spec, examples.ids, examples.n_labels, provenance)
    generator = torch.Generator(device=DEVICE).manual_seed(0)
    for shard in list(writer.missing):
        rows = []
        for i in range(*writer.plan[shard]):
            logits = torch.randn(examples.n_labels[i], scale.vocabulary, device=DEVICE, generator=generator) * 3
            labels = torch.from_numpy(examples.tokens[i][examples.labels[i]].astype(np.int64)).to(DEVICE)
            rows.append(pack(encode_rows(logits, spec, uniforms(0, examples.ids[i], len(logits)), labels), spec))
        writer.write(shard, rows, [])
    return {"data": folder / "data", "teacher_logits": folder / "cache"}


class Product:
    """Steps of the product's own loop."""

    def __init__(self, inputs: dict[str, Path], size: str, kind: str, temperature: float = 1.0, **training: Any):
        scale = Scale(size)
        learner_module.load_model = lambda spec, inputs, dtype="auto", device=None, for_training=False: _trained(
            random_model(size, getattr(torch, dtype))
        )
        learner_module.load_tokenizer = lambda spec, inputs: tiny_tokenizer()
        recipe = {"max_steps": 1000, "learning_rate": 5e-5, "eval_every": 1000, "batch_size": scale.batch}
        recipe |= {"precision": "bf16_stochastic", "packing": True, **training}
        pipeline = {"kind": kind, "options": {}}
        if kind == "kd":
            pipeline |= {"alpha": 0.5, "temperature": temperature}
        params = TrainingParams(model={"source": "random"}, pipeline=pipeline, training=recipe, seed=0)
        work = Path(tempfile.mkdtemp())
        job = Job(params, inputs, work, NoMeter(), lambda message: None, peers=Peers(device=DEVICE))
        self.loop = Loop(job)
        self.note = self.loop.learner.attention

    def step(self) -> int:
        """Tokens of a step."""
        before = self.loop.state.tokens
        self.loop._step()
        return self.loop.state.tokens - before

    def flops(self, steps: range) -> float:
        lengths, labels = self.loop.data.train.lengths(), self.loop.data.train.label_counts()
        rows = (self.loop.sampler.batch(step) for step in steps)
        batches = ((lengths[index], int(labels[index].sum())) for index in rows)
        learner = self.loop.learner
        again = learner.training.gradient_checkpointing
        found = flops_of_training(learner.student.lm, batches, (), again, learner.adapted)
        return found["flops"] - found["flops_recompute"]  # model FLOPs: work that a step needs

    def close(self) -> None:
        self.loop.feed.close()


def _trained(model: Any) -> Any:
    model.config.use_cache = False
    return model.train()


class Plain:
    """A loop as one writes it: padded batches, full logits, fused AdamW, bfloat16. ``loss``: full, harness or liger."""

    note = "sdpa, full logits"

    def __init__(self, inputs: dict[str, Path], size: str, loss: str, micro: int = 4) -> None:
        self.model = _trained(random_model(size, torch.bfloat16))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=DEVICE != "cpu")
        self.examples = load_examples(inputs["data"] / "train.parquet")
        self.size, self.loss, self.micro, self.scale = size, loss, micro, Scale(size)
        self.steps: list[list[int]] = []
        self.random = np.random.default_rng(2)
        if loss == "liger":
            from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

            # β = 0: the forward KL to the teacher, whose hidden states it takes: a live teacher's, here random ones.
            self.liger = LigerFusedLinearJSDLoss(weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.0)
            self.teacher = torch.randn_like(self.model.get_output_embeddings().weight) * 0.02

    def step(self) -> int:
        chosen = sorted(self.random.permutation(len(self.examples))[: self.scale.batch], key=self._length)
        self.steps.append(chosen)
        for at in range(0, len(chosen), self.micro):
            self._backward(chosen[at : at + self.micro], len(chosen) // self.micro)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sum(map(self._length, chosen))

    def _length(self, i: int) -> int:
        return len(self.examples.tokens[i])

    def _backward(self, index: list[int], parts: int) -> None:
        longest = max(map(self._length, index))
        ids, labels = np.zeros((len(index), longest), np.int64), np.full((len(index), longest), -100)
        mask = np.zeros_like(ids)
        for row, i in enumerate(index):
            tokens, where = self.examples.tokens[i], self.examples.labels[i]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            labels[row, where] = tokens[where]
        ids, labels, mask = (torch.from_numpy(x).to(DEVICE) for x in (ids, labels, mask))
        if self.loss == "full":
            loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        elif self.loss == "harness":
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
            target = labels[:, 1:].flatten()
            top = torch.randint(0, logits.shape[1], (len(target), 100), device=DEVICE)
            logp = torch.full(top.shape, -5.0, device=DEVICE)
            known = target >= 0
            loss = reference_kd_loss(logits, target.clamp_min(0), top, logp, 0.5, 1.0, known) / known.sum()
        else:
            states = self.model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1].flatten(0, 1)
            weight = self.model.get_output_embeddings().weight
            loss = self.liger(states, weight, states.detach(), self.teacher, labels[:, 1:].flatten())
        (loss / parts).backward()

    def flops(self, steps: range) -> float:
        batches = [self.steps[step] for step in steps]
        rows = (([self._length(i) for i in b], sum(self.examples.n_labels[i] for i in b)) for b in batches)
        return flops_of_training(self.model, rows)["flops"]  # the same work: what it does beyond is no model FLOP

    def close(self) -> None: ...


def training_cases(inputs: dict[str, Path], size: str) -> dict[str, Callable[[], Any]]:
    """Name → what makes a case. The first four are the pipelines; the others vary one thing, or are other people's."""
    lora = {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}
    cases = {
        "sft": lambda: Product(inputs, size, "sft"),
        "kd": lambda: Product(inputs, size, "kd"),
        "kd, T = 2": lambda: Product(inputs, size, "kd", 2.0),
        "sft, triton": lambda: Product(inputs, size, "sft", loss_kernel="triton"),
        "kd, triton": lambda: Product(inputs, size, "kd", loss_kernel="triton"),
        "kd, triton, T = 2": lambda: Product(inputs, size, "kd", 2.0, loss_kernel="triton"),
        "sft, compiled layers": lambda: Product(inputs, size, "sft", compile=True),
        "kd, compiled layers": lambda: Product(inputs, size, "kd", compile=True),
        "sft, compiled, rows of 16384": lambda: Product(inputs, size, "sft", compile=True, micro_batch_tokens=16384),
        "sft, compiled, checkpointing": lambda: Product(inputs, size, "sft", compile=True, gradient_checkpointing=True),
        "lora": lambda: Product(inputs, size, "lora", lora=lora),
        "lora, compiled layers": lambda: Product(inputs, size, "lora", lora=lora, compile=True),
        "sft, padded rows of 4": lambda: Product(inputs, size, "sft", packing=False, micro_batch_size=4),
        "(a) plain loop, full logits": lambda: Plain(inputs, size, "full"),
        "(c) harness's formula": lambda: Plain(inputs, size, "harness"),
    }
    if importlib.util.find_spec("triton") is None or (DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"):
        cases = {name: make for name, make in cases.items() if "triton" not in name}
    if importlib.util.find_spec("liger_kernel") and DEVICE != "cpu":
        cases["(b) Liger's distillation loss"] = lambda: Plain(inputs, size, "liger")
    return cases


def run_training(make: Callable[[], Any], steps: int) -> dict[str, Any]:
    """One turn of a case: two steps to warm up, then ``steps`` that count."""
    begin = time.monotonic()
    if DEVICE != "cpu":
        torch.cuda.reset_peak_memory_stats()
    case = make()
    tokens = 0
    try:
        for _ in range(2):
            case.step()
        synchronize()
        ready = time.monotonic() - begin

        def work() -> None:
            nonlocal tokens
            tokens += sum(case.step() for _ in range(steps))

        seconds, joules = measured(work)
        flops = case.flops(range(2, 2 + steps))
    finally:
        case.close()
    return {
        "tokens_per_s": tokens / seconds,
        "ms_per_step": 1e3 * seconds / steps,
        "flop_per_s": flops / seconds,
        "j_per_token": None if joules is None else joules / tokens,
        "watts": None if joules is None else joules / seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if DEVICE != "cpu" else None,
        "ready_s": ready,  # made, compiled where asked for, and warmed up
        "note": case.note,
    }


# --- the teacher's cache -----------------------------------------------------------------------------------------


def run_teacher(size: str, n: int) -> dict[str, dict[str, Any]]:
    """Forward passes alone, with logits at the label rows, and the cache, over the same examples."""
    scale = Scale(size)
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(6.0, 0.7, n).astype(int), 32, scale.longest)
    tokens = [random.integers(3, scale.vocabulary, length).astype(np.int32) for length in lengths]
    labels = [np.arange(length // 3, length) for length in lengths]
    examples = Examples([f"e{i}" for i in range(n)], tokens, labels)
    model = random_model(size, torch.bfloat16).eval()
    teacher = Teacher(model, 0)
    spec = CacheSpec.of(Logits(head=32, tail=64), scale.vocabulary)
    last = {i: int(labels[i][-1]) for i in range(n)}
    batches = length_batches(last, list(range(n)), scale.teacher_tokens)

    def forward(head: bool) -> None:
        for batch in batches:
            hidden, _ = teacher.hidden([tokens[i][: last[i]] for i in batch])
            if head:
                before = teacher.positions([labels[i] - 1 for i in batch], hidden.shape[1])
                states = hidden.flatten(0, 1).index_select(0, before)
                for at in range(0, len(states), 1024):
                    teacher.logits(states[at : at + 1024])

    def cache() -> None:
        make_shard(teacher, spec, examples, (0, n), scale.teacher_tokens, 0, NoMeter())

    work = {"forward": lambda: forward(False), "forward and logits": lambda: forward(True), "cache": cache}
    flops = flops_of_forward(model, [len(t) for t in tokens], int(sum(map(len, labels))))["flops"]
    total = int(lengths.sum())
    found: dict[str, list] = {name: [] for name in work}
    with torch.inference_mode():
        make_shard(teacher, spec, examples, (0, min(n, 8)), scale.teacher_tokens, 0, NoMeter())  # warms up
        for _ in range(2 if size != "32b" else 1):
            for name, do in work.items():
                found[name].append(measured(do))
    rows = {}
    for name, turns in found.items():
        seconds = statistics.median(s for s, _ in turns)
        joules = None if any(j is None for _, j in turns) else statistics.median(j for _, j in turns)
        rows[name] = {
            "tokens_per_s": total / seconds,
            "flop_per_s": flops / seconds,
            "j_per_token": None if joules is None else joules / total,
            "watts": None if joules is None else joules / seconds,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if DEVICE != "cpu" else None,
        }
    return rows


# --- all of it ---------------------------------------------------------------------------------------------------


def free() -> None:
    gc.collect()
    if DEVICE != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def table(rows: dict[str, dict[str, Any]], peak: float) -> str:
    """Markdown of rows with the same columns."""

    def cell(value: Any, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [
        "| | tok/s | model TFLOP/s | of the matmul peak | J/token | W | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | failed: {row['error']} | | | | | |")
            continue
        share = row["flop_per_s"] / peak
        cells = [cell(row["tokens_per_s"], ",.0f"), cell(row["flop_per_s"] / 1e12, ".0f"), cell(share, ".0%")]
        cells += [cell(row["j_per_token"], ".5f"), cell(row["watts"], ".0f"), cell(row["peak_gb"], ".1f")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", choices=[s for s in SHAPES if s != "32b"], default="1b" if DEVICE != "cpu" else "tiny"
    )
    parser.add_argument(
        "--teachers", nargs="*", choices=list(SHAPES), default=["1b", "32b"] if DEVICE != "cpu" else ["tiny"]
    )
    parser.add_argument("--cases", nargs="*", help="of the training cases, by name or first word")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=280.0, help="no turn begins after this")
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    options = parser.parse_args()
    begin = time.monotonic()
    card = torch.cuda.get_device_name(0) if DEVICE != "cpu" else "CPU"
    peak = matmul_peak()
    report: dict[str, Any] = {"card": card, "torch": torch.__version__, "matmul_flop_per_s": peak}
    print(f"{card}, torch {torch.__version__}: {peak / 1e12:.0f} TFLOP/s of bfloat16 products", flush=True)

    def save() -> None:
        if options.out:
            options.out.write_text(json.dumps(report, indent=1))

    report["teacher"] = {}
    for size in options.teachers:
        n = {"tiny": 8, "1b": 300, "13b": 150, "32b": 100}[size]
        try:
            rows = run_teacher(size, n)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            rows = {"all": {"error": str(error).splitlines()[0][:200]}}
        free()
        report["teacher"][size] = rows
        print(f"\nTeacher, {size} ({time.monotonic() - begin:.0f} s)\n{table(rows, peak)}", flush=True)
        if "cache" in rows and rows["cache"]["j_per_token"]:
            ratio = rows["cache"]["j_per_token"] / rows["forward and logits"]["j_per_token"]
            print(f"cache / forward and logits: {ratio:.3f} in J/token", flush=True)
        save()
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_data(Path(folder), Scale(options.size))
        cases = training_cases(inputs, options.size)
        if options.cases:
            cases = {n: make for n, make in cases.items() if any(c in (n, n.split()[0]) for c in options.cases)}
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
        for _ in range(options.turns):
            for name, make in cases.items():
                if time.monotonic() - begin > options.seconds:
                    continue
                try:
                    turns[name].append(run_training(make, options.steps))
                except Exception as error:
                    turns[name].append({"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]})
                free()
                print(f"{time.monotonic() - begin:.0f} s: {name}: {turns[name][-1]}", flush=True)
        report["training_turns"] = turns
        rows = {}
        for name, found in turns.items():
            if good := [t for t in found if "error" not in t]:
                rows[name] = {k: _median([t[k] for t in good]) for k in good[0]}
            elif found:
                rows[name] = found[0]
        report["training"] = rows
        print(f"\nTraining, {options.size} ({time.monotonic() - begin:.0f} s)\n{table(rows, peak)}", flush=True)
        if all("error" not in rows.get(n, {"error": ""}) for n in ("sft", "kd")):
            ratios = [rows["kd"][k] / rows["sft"][k] for k in ("ms_per_step", "j_per_token") if rows["sft"][k]]
            print(f"kd / sft: {', '.join(f'{r:.3f}' for r in ratios)} (time, J/token)", flush=True)
    save()


def _median(values: list[Any]) -> Any:
    known = [v for v in values if isinstance(v, int | float)]
    return statistics.median(known) if known else values[0]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
