"""What the output layer and the loss cost: forward and backward, this project's against the paper harness's formula.

    python benchmarks/kd_loss.py [--vocabulary 100352] [--width 576] [--positions 1024] [--response 311] [--bf16]

Hidden states, output layer and teacher are random (the cost does not depend on their values). Each method runs in a
process of its own; reported are processor seconds (the least of --repeats) and the peak of resident memory above that
of the inputs, the weight's gradient included. Ratios are against plain cross-entropy on response rows only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow_scripts"))

METHODS = {
    "ce_masked": "CE, response rows, plain",
    "ce_all": "CE, all positions, plain",
    "ce_fused": "CE, response rows, fused",
    "reference_T1": "reference KD, all positions, T=1",
    "reference_T2": "reference KD, all positions, T=2",
    "kd_T1": "KD, fused, T=1",
    "kd_T2": "KD, fused, T=2",
    "kd_T4": "KD, fused, T=4",
    "kd_T3": "KD, fused, T=3",
    "topk_T1": "KD, fused, topk with bucket, T=1",
    "topk_T2": "KD, fused, topk with bucket, T=2",
}


def measure(method: str, args: argparse.Namespace) -> dict[str, float]:
    """Processor seconds and extra peak MB of one forward and backward."""
    import resource

    import torch
    import torch.nn.functional as F

    from distill_energy.kd.cache import CacheSpec, encode_rows, pack, uniforms, unpack
    from distill_energy.kd.losses.ce import ce_loss
    from distill_energy.kd.losses.kd import kd_loss
    from distill_energy.kd.losses.reference import reference_kd_loss
    from distill_energy.kd.losses.teacher import collate_teacher

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    hidden = torch.randn(args.positions, args.width, requires_grad=True)
    weight = (torch.randn(args.vocabulary, args.width) * 0.02).requires_grad_()
    labels = torch.randint(args.vocabulary, (args.positions,))
    mask = torch.zeros(args.positions)
    mask[: args.response] = 1
    name, _, t = method.partition("_T")
    temperature = float(t or 1)
    rows = None
    if name in ("kd", "topk"):
        kind = {"kd": "head_tail", "topk": "topk"}[name]
        spec = CacheSpec(method=kind, vocab_size=args.vocabulary, head=48 if name == "kd" else 100)
        pieces = []
        for at in range(0, args.response, 32):
            n = min(32, args.response - at)
            encoded = encode_rows(torch.randn(n, args.vocabulary) * 3, spec, uniforms(0, str(at), n), chunk_rows=8)
            pieces.append(unpack(pack(encoded, spec), spec))
        rows = collate_teacher(pieces)
    top = (torch.randint(args.vocabulary, (args.positions, 100)), torch.log(torch.full((args.positions, 100), 0.009)))
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16)

    def step() -> None:
        with autocast:
            some = hidden[: args.response]
            if name == "ce_fused":
                loss = ce_loss(some, weight, labels[: args.response]).loss
            elif name in ("kd", "topk"):
                loss = kd_loss(some, weight, labels[: args.response], rows, 0.5, temperature).loss
            elif name == "ce_masked":
                loss = F.cross_entropy(F.linear(some, weight).float(), labels[: args.response], reduction="sum")
            elif name == "ce_all":
                loss = F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="none").mul(mask).sum()
            else:
                logits = F.linear(hidden, weight)
                loss = reference_kd_loss(logits, labels, *top, 0.5, temperature, mask)
        loss.backward()
        hidden.grad = weight.grad = None

    warm = torch.randn(64, 64, requires_grad=True)  # wake autograd and the product's buffers
    (warm @ warm).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm") as handle:
        resident = int(handle.read().split()[1]) * resource.getpagesize() / 1024
    seconds = []
    for _ in range(args.repeats):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(seconds), "megabytes": (peak - resident) / 1024, "hidden_peak": peak <= before}


def worker(method: str, args: argparse.Namespace, pipe) -> None:
    pipe.send(measure(method, args))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("vocabulary", 100352), ("width", 576), ("positions", 1024), ("response", 311)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="under bf16 autocast")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found: dict[str, dict[str, float]] = {}
    for method in args.methods:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(method, args, theirs))
        process.start()
        theirs.close()
        found[method] = ours.recv()
        process.join()
        base = found.get("ce_masked", found[method])["seconds"]
        row = found[method]
        # A peak reached while the inputs were made hides the method's own.
        note = "  (peak not above that of the inputs' making)" if row["hidden_peak"] else ""
        print(
            f"{METHODS[method]:34s} {row['seconds']:7.2f} CPU-s  {row['seconds'] / base:5.2f} x masked CE "
            f"{row['megabytes']:8.0f} MB{note}",
            flush=True,
        )
    reference = found.get("reference_T2")
    if reference and "kd_T2" in found:
        print(
            f"against the reference at T=2: {reference['seconds'] / found['kd_T2']['seconds']:.1f} times less time, "
            f"memory {found['kd_T2']['megabytes'] / reference['megabytes']:.2f} of the reference's"
        )
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
