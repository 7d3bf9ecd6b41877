"""Gradients of every parameter: distillation on a cache against the full KL, on a real teacher, student and text.

    python benchmarks/kd_gradients.py --teacher FOLDER --student FOLDER --data train.parquet [--examples 16]

The folders are Hugging Face models (``results/preprocess/model-…/*/model``, ``results/student_training/…/*/model``),
the data an artifact of ``preprocess``. For one batch and each T: cosine and norm ratio of T²·KL(cached ‖ student)'s
gradient and that of T²·KL(dense ‖ student), over all parameters of the student, in fp32. The harness is the reference:
KL over its 100 most probable tokens without the tail, at the cached temperature.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow_scripts"))

from logit_cache import METHODS


def states(model, rows: list[dict]):
    """Hidden states that predict the labels, of all rows, and the labels."""
    import torch

    hidden, labels = [], []
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        at = torch.tensor(row["loss_mask"]).nonzero()[:, 0]
        at = at[at > 0]
        hidden.append(model.base_model(ids[None]).last_hidden_state[0, at - 1])
        labels.append(ids[at])
    return torch.cat(hidden), torch.cat(labels)


def gradient(model, loss):
    """All parameters' gradients as one vector."""
    import torch

    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def dense_loss(hidden, weight, z, t: float):
    """T²·KL(teacher ‖ student) over the whole vocabulary, summed over tokens."""
    import torch

    log_q = torch.log_softmax(hidden @ weight.T / t, -1)
    log_p = torch.log_softmax(z / t, -1)
    return t * t * (log_p.exp() * (log_p - log_q)).sum()


def truncated_loss(hidden, weight, z, t: float):
    """The same over the teacher's 100 most probable tokens alone."""
    import torch

    log_p, ids = torch.log_softmax(z / t, -1).topk(100)
    log_q = torch.log_softmax(hidden @ weight.T / t, -1).gather(1, ids)
    return t * t * (log_p.exp() * (log_p - log_q)).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "student", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--examples", type=int, default=16)
    args = parser.parse_args()
    import pyarrow.parquet as pq
    import torch

    from distill_energy.kd.cache import CacheSpec, encode_rows, pack, uniforms, unpack
    from distill_energy.kd.losses.kd import kd_loss
    from distill_energy.kd.losses.teacher import collate_teacher
    from distill_energy.models.sources import load_model

    rows = pq.read_table(args.data, columns=["input_ids", "loss_mask"]).slice(0, args.examples).to_pylist()
    teacher = load_model({"source": "folder", "path": args.teacher}, {}, dtype="float32")
    with torch.inference_mode():
        hidden, _ = states(teacher, rows)
        z = (hidden @ teacher.get_output_embeddings().weight.T).clone()
    del teacher
    model = load_model({"source": "folder", "path": args.student}, {}, dtype="float32", for_training=True)
    hidden, labels = states(model, rows)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        distance = float(dense_loss(hidden, weight, z, 1.0)) / len(z)
    print(f"{len(rows)} examples, {len(z)} response tokens, V = {z.shape[1]:,}, {distance:.2f} nats apart")
    print(f"{'':18s} {'B/token':>8s} {'draws':>6s}" + "".join(f"{f'T = {t:g}':>18s}" for t in (1, 2, 4)))

    table = {"harness: top 100": [("", "")]}
    caches = {}
    for name, settings in METHODS.items():
        spec = CacheSpec(vocab_size=z.shape[1], **settings)
        packed = pack(encode_rows(z, spec, uniforms(0, "batch", len(z))), spec)
        caches[name] = collate_teacher(unpack(packed, spec))
        table[name] = [(f"{packed.nbytes / len(z):.0f}", f"{packed.tail_total / len(z):.1f}")]
    for t in (1.0, 2.0, 4.0):
        full = gradient(model, dense_loss(hidden, weight, z, t))
        for name, cells in table.items():
            if name in caches:
                loss = kd_loss(hidden, weight, labels, caches[name], 0.0, t).loss
            else:
                loss = truncated_loss(hidden, weight, z, t)
            found = gradient(model, loss)
            cosine = float(torch.cosine_similarity(full, found, 0))
            cells.append(f"{cosine:.4f} / {float(found.norm() / full.norm()):.3f}")
    for name, (sizes, *cells) in table.items():
        print(f"{name:18s} {sizes[0]:>8s} {sizes[1]:>6s}" + "".join(f"{cell:>18s}" for cell in cells))


if __name__ == "__main__":
    main()
