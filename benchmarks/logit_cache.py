"""The logit cache against the paper harness's method, side by side: bytes, throughput, memory, and exactness.

    python benchmarks/logit_cache.py [--model FOLDER] [--examples 8] [--length 1024] [--response 311]

Storage: synthetic logits on 100,352 tokens that fall off as 1.2 to 3·log(rank) with Gaussian noise of 1 nat, tokens in
random order (real token ids compress better). So spread they are about as sure as SmolLM2-135M on its data: 12 distinct
tokens in 50 draws, top-100 mass 0.98 / 0.50 / 0.05 at T = 1 / 2 / 4. Each method runs in a process of its own. The
reference keeps the top 100 log-probabilities of *every* position at one temperature as nested lists in a ``datasets``
table, saved in chunks and once more as a whole; it is read back as lists. Bytes and rates are per response token, rates
in tokens a processor second (making the logits is left out), memory is the peak above that of the inputs.

Exactness, with --model (a Hugging Face folder): batch gradients of each method against the full KL on a text, for the
stand-in student of ``teacher/cache/audit.py``, and what quantisation costs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow_scripts"))

VOCABULARY = 100_352
METHODS = {
    "head_tail 32+64": {"method": "head_tail", "head": 32, "tail": 64},
    "head_tail 48+48": {"method": "head_tail", "head": 48, "tail": 48},
    "topk 100": {"method": "topk", "head": 100},
    "topk 32": {"method": "topk", "head": 32},
    "sampled 50": {"method": "sampled", "tail": 50},
    "head_tail 16+16": {"method": "head_tail", "head": 16, "tail": 16},
}
TEXT = Path(__file__).resolve().parents[1] / "LICENSE"


def synthetic(n: int, seed: int):
    """[n, VOCABULARY] fp32 logits with a heavy tail, token order shuffled per row."""
    import numpy as np
    import torch

    rng = np.random.default_rng(seed)
    decay = (-np.log(np.arange(1, VOCABULARY + 1))).astype(np.float32)
    out = np.empty((n, VOCABULARY), np.float32)
    for row in out:
        row[rng.permutation(VOCABULARY)] = decay * rng.uniform(1.2, 3.0)
        row += rng.standard_normal(VOCABULARY, dtype=np.float32)
    return torch.from_numpy(out)


class Meter:
    """Processor seconds, and peak resident memory above what was there at the first start."""

    def __init__(self) -> None:
        self.seconds, self.base, self.peak = 0.0, None, 0.0

    def __enter__(self):
        self.base = self.base or _resident()
        self.start = time.process_time()
        return self

    def __exit__(self, *_) -> None:
        self.seconds += time.process_time() - self.start
        self.peak = max(self.peak, _resident() - self.base)


def _resident() -> float:
    import resource

    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize() / 2**20


def run_ours(name: str, args, folder: Path) -> dict[str, float]:
    """Encode, write, verify and read in random order."""
    import random

    from distill_energy.kd.cache import CacheReader, CacheSpec, CacheWriter, encode_rows, pack, uniforms
    from distill_energy.kd.losses.teacher import collate_teacher

    spec = CacheSpec(vocab_size=VOCABULARY, **METHODS[name])
    ids = [f"e{i}" for i in range(args.examples)]
    writer = CacheWriter(folder, spec, ids, [args.response] * args.examples)
    encode, store, read = Meter(), Meter(), Meter()
    packed = []
    for i, example in enumerate(ids):
        logits = synthetic(args.response, i)
        with encode:
            rows = encode_rows(logits, spec, uniforms(0, example, args.response))
        with store:
            packed.append(pack(rows, spec))
    with store:
        for index in list(writer.missing):
            start, stop = writer.plan[index]
            writer.write(index, packed[start:stop])
    reader = CacheReader(folder)
    order = ids * args.epochs
    random.Random(0).shuffle(order)
    with read:
        for at in range(0, len(order), 4):
            collate_teacher(reader.batch(order[at : at + 4]))
    size = sum(path.stat().st_size for path in folder.iterdir())
    return _row(args, size, encode, store, read, args.epochs)


def run_reference(name: str, args, folder: Path) -> dict[str, float]:
    """Top 100 of every position, lists, two copies; a batch is lists to padded tensors."""
    import random

    import datasets
    import torch

    datasets.disable_progress_bars()
    encode, store, read = Meter(), Meter(), Meter()
    chunks = []
    for at in range(0, args.examples, 4):
        rows = []
        for i in range(at, min(at + 4, args.examples)):
            logits = synthetic(args.response, i).repeat(-(-args.length // args.response), 1)[: args.length]
            with encode:
                values, tokens = torch.log_softmax(logits, -1).topk(100, dim=-1)
            with store:
                rows.append({"id": f"e{i}", "values": values.tolist(), "tokens": tokens.tolist()})
        with store:
            chunks.append(datasets.Dataset.from_list(rows))
            chunks[-1].save_to_disk(folder / f"chunk-{at}")
    with store:
        datasets.concatenate_datasets(chunks).save_to_disk(folder / "whole")
    table = datasets.load_from_disk(str(folder / "whole"))
    order = list(range(args.examples))
    random.Random(0).shuffle(order)
    with read:
        for at in range(0, len(order), 4):
            batch = table[order[at : at + 4]]
            torch.tensor(batch["values"]), torch.tensor(batch["tokens"])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return _row(args, size, encode, store, read, 1)


def _row(args, size: int, encode: Meter, store: Meter, read: Meter, epochs: int) -> dict[str, float]:
    tokens = args.examples * args.response
    return {
        "bytes": size / tokens,
        "encode": tokens / encode.seconds,
        "write": tokens / store.seconds,
        "read": tokens * epochs / read.seconds,
        "memory": max(encode.peak, store.peak),
    }


def worker(name: str, args, pipe) -> None:
    import torch

    torch.set_num_threads(1)
    import datasets  # noqa: F401  (imports are not what is measured)
    import pyarrow.parquet  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        pipe.send((run_reference if name == "reference" else run_ours)(name, args, Path(folder)))


def storage(args) -> None:
    print(f"Storage, V = {VOCABULARY:,}, synthetic; {args.examples} examples of {args.length} positions, "
          f"{args.response} of them response")  # fmt: skip
    print(
        f"{'':18s} {'B/token':>9s} {'encode/s':>10s} {'write/s':>10s} {'read/s':>11s} {'of ref.':>8s} {'peak MB':>8s}"
    )
    context = multiprocessing.get_context("spawn")
    base = None
    for name in ["reference", *METHODS]:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(name, args, theirs))
        process.start()
        theirs.close()
        row = ours.recv()
        process.join()
        base = base or row
        print(
            f"{name:18s} {row['bytes']:9.1f} {row['encode']:10,.0f} {row['write']:10,.0f} {row['read']:11,.0f} "
            f"{row['read'] / base['read']:7.0f}x {row['memory']:8.0f}",
            flush=True,
        )


def exactness(args) -> None:
    import numpy as np
    import torch

    from distill_energy.kd.cache import CacheSpec, audit_batch, encode_rows, pack, uniforms, unpack
    from distill_energy.kd.cache.audit import STUDENT_MIX
    from distill_energy.models.sources import load_model, load_tokenizer
    from distill_energy.teacher.logits import Teacher

    torch.set_num_threads(1)
    source = {"source": "folder", "path": args.model}
    teacher = Teacher(load_model(source, {}, dtype="float32"), 0)
    text = Path(args.text).read_text(encoding="utf-8", errors="replace")
    ids = load_tokenizer(source, {}).encode(text[:20000], add_special_tokens=False)[: args.tokens + 130]
    with torch.inference_mode():
        pieces = [np.array(ids[at : at + 130]) for at in range(0, len(ids) - 130, 100)]
        pairs = [teacher.hidden([piece], True) for piece in pieces]
        last = torch.cat([h[0, 30:] for h, _ in pairs])
        student = torch.lerp(last, torch.cat([c[0, 30:] for _, c in pairs]), STUDENT_MIX)
        z, weight = teacher.logits(last), teacher._weight.detach()
        print(f"\nExactness, V = {teacher.vocabulary:,}, {len(z)} tokens of {Path(args.text).name}: "
              "cosine / norm ratio of the batch gradient, and KL(exact ‖ stored)")  # fmt: skip
        for t in (1.0, 2.0, 4.0):
            print(f"T={t:g} {'reference top 100':18s} " + _truncated(z, teacher.logits(student), weight, student, t))
        for name, settings in METHODS.items():
            spec = CacheSpec(vocab_size=teacher.vocabulary, **settings)
            rows = pack(encode_rows(z, spec, uniforms(0, "text", len(z))), spec)
            found = audit_batch(
                lambda piece: z[piece],
                lambda piece: teacher.logits(student[piece]),
                student,
                [unpack(rows, spec)],
                weight,
            )
            print(f"{name}: {rows.nbytes / len(z):.1f} bytes a token (student's KL {found['student_kl']:.2f})")
            for t, v in found["temperatures"].items():
                print(
                    f"T={t} {'':18s} {v['cosine']:.4f} / {v['norm_ratio']:.3f}   {v['quantisation_kl']:.1e}", flush=True
                )


def _truncated(z, s, weight, student, t: float) -> str:
    """Cosine and norm ratio of the reference's truncated KL."""
    import torch

    p, q = torch.softmax(z / t, -1), torch.softmax(s / t, -1)
    top, ids = p.topk(100)
    dense = ((q - p) @ weight).T @ student
    ours = ((q * top.sum(1, keepdim=True)).scatter_add(1, ids, -top) @ weight).T @ student
    cosine = float((dense * ours).sum() / dense.norm() / ours.norm())
    return f"{cosine:.4f} / {float(ours.norm() / dense.norm()):.3f}   mass {float(top.sum(1).mean()):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a causal language model, for the second part")
    parser.add_argument("--text", default=str(TEXT), help="plain text for the second part")
    parser.add_argument("--tokens", type=int, default=300, help="of that text")
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--response", type=int, default=311)
    parser.add_argument("--epochs", type=int, default=40, help="times the cache is read")
    args = parser.parse_args()
    storage(args)
    if args.model:
        exactness(args)


if __name__ == "__main__":
    main()
