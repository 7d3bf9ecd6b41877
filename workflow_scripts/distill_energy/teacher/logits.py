"""The stage ``teacher_logits``: one forward pass of the teacher over the training data, into the logit cache.

Batches are sorted by length within a shard; the output layer runs on the rows that predict a label only, in chunks, so
that no (batch × length × vocabulary) tensor exists. The same pass yields the teacher's loss, accuracy and entropy.
"""

from __future__ import annotations

import json
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..config.params import LogitsParams
from ..context import Context

CHUNK_ROWS = 64
AUDIT_TOKENS = 512  # response tokens of a shard's audit at most


def main(ctx: Context[LogitsParams]) -> dict[str, Any]:
    """Write the cache. Goes on from the shards that are complete. Returns the teacher's figures and the certificate."""
    with ctx.meter.phase("start"):
        from ..data.stage import check_made_with
        from ..kd.cache.reader import CacheReader
        from ..models.flops import flops_of_forward
        from ..models.sources import bare_model, load_tokenizer
        from .workers import WorkerGroup, processes

    params = ctx.params
    work = Work(params, ctx.inputs, ctx.out)
    check_made_with(ctx.inputs["data"] / "train.parquet", load_tokenizer(params.model, ctx.inputs))
    bare = bare_model(params.model, ctx.inputs)
    count = processes(ctx.spec.runs.get("processes"), bare, params.dtype, ctx.log)
    if count > 1:
        with WorkerGroup(params, ctx.inputs, ctx.out, count) as workers:
            with ctx.meter.phase("load"):
                facts = workers.loaded()
            writer = work.writer(facts, ctx.log)
            progress = Progress(writer, ctx)
            for index, told in workers.make(writer.missing):
                for kind, n in told["tokens"].items():
                    ctx.meter.add_tokens(kind, n)
                progress.done(index)
    else:
        with ctx.meter.phase("load"):
            teacher = work.load()
        facts = work.facts(teacher)
        writer = work.writer(facts, ctx.log)
        progress = Progress(writer, ctx)
        for index in list(writer.missing):
            work.make(teacher, writer, index, ctx.meter)
            progress.done(index)
    found = summary(CacheReader(ctx.out, verify=False).certificate) | {"processes": count}
    lengths = [len(row) for row in work.examples.tokens]
    return found | flops_of_forward(bare, lengths, sum(work.examples.n_labels))


class Progress:
    """What is done already, and the rate of what is done since, in the log."""

    def __init__(self, writer: Any, ctx: Any) -> None:
        self.writer, self.log, self.started, self.tokens = writer, ctx.log, time.monotonic(), 0
        done = len(writer.plan) - len(writer.missing)
        if done:
            ctx.log(f"teacher_logits: {done} of {len(writer.plan)} shards are complete, going on from there")

    def done(self, index: int) -> None:
        start, stop = self.writer.plan[index]
        self.tokens += sum(self.writer.tokens[start:stop])
        rate = self.tokens / max(time.monotonic() - self.started, 1e-9)
        self.log(f"teacher_logits: shard {index + 1} of {len(self.writer.plan)}, {rate:,.0f} response tokens/s")


class Work:
    """What each of the processes that make a cache does: load the teacher, make a shard.

    ``facts`` are what a writer needs to know of the teacher (JSON), so that a process without one may plan.
    """

    def __init__(self, params: LogitsParams, inputs: dict[str, Any], out: Any) -> None:
        self.params, self.inputs, self.out = params, inputs, out
        self.settings = params.logits
        self.examples = load_examples(inputs["data"] / "train.parquet")

    def load(self) -> Teacher:
        """The teacher, over all GPUs that this process sees."""
        import torch

        from ..models.sources import load_model, load_tokenizer

        device = "auto" if torch.cuda.is_available() else None
        model = load_model(self.params.model, self.inputs, dtype=self.params.dtype, device=device)
        return Teacher(model, load_tokenizer(self.params.model, self.inputs).pad_token_id or 0)

    def facts(self, teacher: Teacher) -> dict[str, Any]:
        """Vocabulary and provenance. Raises UserError if the model's own logits are not those that will be cached."""
        import torch

        from ..models.fingerprint import template_hash, tokenizer_hash, weights_hash
        from ..models.sources import load_tokenizer
        from ..store.atomic import sha256

        with torch.inference_mode():
            teacher.check()
        tokenizer = load_tokenizer(self.params.model, self.inputs)
        provenance = {
            "model": json.dumps(self.params.model, sort_keys=True),
            "dtype": str(teacher.dtype).removeprefix("torch."),
            "teacher_sha256": weights_hash(teacher.model),
            "tokenizer_sha256": tokenizer_hash(tokenizer),
            "template_sha256": template_hash(tokenizer),
            "data_sha256": sha256(self.inputs["data"] / "train.parquet"),
        }
        return {"vocabulary": teacher.vocabulary, "provenance": provenance}

    def writer(self, facts: dict[str, Any], log: Any = print, leads: bool = True) -> Any:
        """A writer of the cache (see ``CacheWriter``)."""
        from ..kd.cache.spec import CacheSpec
        from ..kd.cache.writer import CacheWriter

        spec = CacheSpec.of(self.settings, facts["vocabulary"])
        sizes = {"max_tokens": self.settings.shard_tokens, "max_examples": self.settings.shard_examples}
        ids, labels = self.examples.ids, self.examples.n_labels
        return CacheWriter(self.out, spec, ids, labels, facts["provenance"], log=log, leads=leads, **sizes)

    def make(self, teacher: Teacher, writer: Any, index: int, meter: Any) -> None:
        """Make shard ``index`` and write it."""
        import torch

        sizes = (self.settings.batch_tokens, self.settings.audit_examples)
        with torch.inference_mode():
            rows, audits = make_shard(teacher, writer.spec, self.examples, writer.plan[index], *sizes, meter)
        writer.write(index, rows, audits)


def summary(certificate: dict[str, Any]) -> dict[str, Any]:
    """The sidecar's results: small scalars of the certificate."""
    out = {
        "teacher_loss": certificate["teacher"]["loss"],
        "teacher_accuracy": certificate["teacher"]["accuracy"],
        "teacher_entropy": certificate["teacher"]["entropy"],
        "response_tokens": certificate["tokens"],
        "bytes_per_token": certificate["bytes_per_token"],
        "method": certificate["spec"]["method"],
        "head": certificate["spec"]["head"],
        "tail": certificate["spec"]["tail"],
    }
    for t, mass in certificate["head_mass"].items():
        out[f"head_mass_mean_T{t}"], out[f"head_mass_p05_T{t}"] = mass["mean"], mass["p05"]
    for t, audit in certificate["audit"].items():
        for key in ("gradient_cosine", "norm_ratio", "quantisation_kl"):
            out[f"{key}_T{t}"] = audit[key]
    return out


class Examples:
    """Token ids and label positions of the training data; Arrow buffers, no Python lists."""

    def __init__(self, ids: list[str], tokens: list, labels: list) -> None:
        self.ids, self.tokens, self.labels = ids, tokens, labels
        self.n_labels = [len(positions) for positions in labels]

    def __len__(self) -> int:
        return len(self.ids)


def load_examples(path) -> Examples:
    """Read ``train.parquet``. Label positions are t ≥ 1 with loss_mask 1. Raises UserError naming the file."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..errors import UserError

    try:
        table = pq.read_table(path, columns=["id", "input_ids", "loss_mask"]).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not table.num_rows:
        raise UserError(f"{path}: holds no examples")

    def lists(name: str) -> list:
        found = []
        for column in table.column(name).chunks:  # one alone holds 2³¹ elements at most
            flat, ends = column.flatten().to_numpy(zero_copy_only=False), np.cumsum(column.value_lengths().to_numpy())
            found += np.split(flat, ends[:-1])
        return found

    ids, masks = table.column("id").to_pylist(), lists("loss_mask")
    tokens = lists("input_ids")
    labels = []
    for name, row, mask in zip(ids, tokens, masks, strict=True):
        if len(row) != len(mask):
            raise UserError(f"{path}: example {name!r} has {len(row)} input_ids and {len(mask)} loss_mask values")
        found = np.flatnonzero(mask)
        labels.append(found[found > 0])
    if not any(len(found) for found in labels):
        raise UserError(f"{path}: no example has a label (loss_mask is 0 throughout)")
    return Examples(ids, tokens, labels)


class Teacher:
    """A causal language model cut into its base (hidden states) and its output layer."""

    def __init__(self, model, pad: int) -> None:
        import torch

        from ..models.logits import logit_rule

        self.model, self.pad = model, pad
        self.base, self.head = model.base_model, model.get_output_embeddings()
        self.vocabulary, self.dtype = self.head.weight.shape[0], self.head.weight.dtype
        self.rule = logit_rule(model.config)
        self.norm = next(
            (m for name in ("norm", "final_layer_norm", "ln_f") if (m := getattr(self.base, name, None))), None
        )
        self.device = model.get_input_embeddings().weight.device
        # bf16 logits have steps of 1/8 nat: the output layer runs in fp32.
        self._weight = self.head.weight if self.head.weight.is_cuda else self.head.weight.float()
        self._torch = torch

    def logits(self, hidden):
        """fp32 logits [r, V] of hidden states [r, H]."""
        torch, w = self._torch, self._weight
        hidden = hidden.to(w.device)
        if w.is_cuda and w.dtype != torch.float32:
            out = torch.mm(hidden.to(w.dtype), w.T, out_dtype=torch.float32)
        else:
            out = torch.mm(hidden.float(), w.float().T)
        if self.head.bias is not None:
            out.add_(self.head.bias.float())
        return self.rule.apply(out)

    def check(self) -> None:
        """Raise UserError if the model's own logits are not those of its base and output layer."""
        from ..models.logits import check_logits

        check_logits(self.model)

    def positions(self, found: list, length: int):
        """Places [n] in the flattened rows of ``length`` tokens of the positions found in each row."""
        import numpy as np

        flat = np.concatenate([row * length + positions for row, positions in enumerate(found)])
        return self._torch.from_numpy(flat.astype(np.int64)).to(self.device)

    def hidden(self, sequences: list, inner: bool = False):
        """Last hidden states [b, L, H] of right-padded sequences and, if asked, those of an inner layer, normed.

        Causal attention never looks right, so the padding needs no mask.
        """
        import numpy as np

        length = max(map(len, sequences))
        batch = np.full((len(sequences), length), self.pad, dtype=np.int64)
        for row, sequence in enumerate(sequences):
            batch[row, : len(sequence)] = sequence
        ids = self._torch.from_numpy(batch).to(self.device)
        output = self.base(input_ids=ids, use_cache=False, output_hidden_states=inner)
        if not inner:
            return output.last_hidden_state, None
        states = output.hidden_states
        cut = states[max(1, (len(states) - 1) * 3 // 4)]
        return output.last_hidden_state, self.norm(cut) if self.norm is not None else cut


def length_batches(lengths: list[int], order: list[int], batch_tokens: int) -> list[list[int]]:
    """Indices ``order`` sorted by length, longest first, cut so that rows × longest ≤ batch_tokens (or one row)."""
    batches: list[list[int]] = []
    for i in sorted(order, key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def make_shard(
    teacher: Teacher, spec, examples: Examples, span: tuple[int, int], batch_tokens: int, audit_examples: int, meter
) -> tuple[list, list[dict]]:
    """Packed rows of examples [start, stop) in order, and the audit of some of them."""
    start, stop = span
    todo = [i for i in range(start, stop) if examples.n_labels[i]]
    audited = _audited(todo, examples.n_labels, audit_examples)
    # Nothing after the last label's predecessor is needed.
    lengths = {i: int(examples.labels[i][-1]) for i in todo}
    packed: dict[int, Any] = {i: _empty(spec) for i in range(start, stop) if not examples.n_labels[i]}
    kept: list[tuple] = []
    rest = [i for i in todo if i not in audited]
    plain = length_batches(lengths, rest, batch_tokens)
    with Packer(spec, examples, teacher.dtype, packed, aside=teacher.device.type == "cuda") as packer:
        for batch, inner in [*((b, False) for b in plain), *(([i], True) for i in sorted(audited))]:
            hidden, cut = teacher.hidden([examples.tokens[i][: lengths[i]] for i in batch], inner)
            used = sum(lengths[i] for i in batch)
            meter.add_tokens("processed", used)
            meter.add_tokens("padding", len(batch) * lengths[batch[0]] - used)
            meter.add_tokens("loss", sum(examples.n_labels[i] for i in batch))
            before = teacher.positions([examples.labels[i] - 1 for i in batch], hidden.shape[1])
            states = hidden.flatten(0, 1).index_select(0, before)
            packer.add(batch, encode_batch(teacher, spec, examples, batch, states))
            if inner:
                kept.append((states, cut.flatten(0, 1).index_select(0, before.to(cut.device)), batch[0]))
    rows = [packed[i] for i in range(start, stop)]
    return rows, [_audit(teacher, spec, [(one, other, packed[i]) for one, other, i in kept])] if kept else []


def encode_batch(teacher: Teacher, spec, examples: Examples, batch: list[int], states) -> Any:
    """Encoded rows of a batch's examples, in order, from the hidden states [n, H] that predict their labels.

    Where the teacher is on a GPU they are still there, or on their way (see ``OnDevice``).
    """
    import numpy as np

    from ..kd.cache.encode import OnDevice, encode_chunk, rows_at_a_time, uniforms

    torch = teacher._torch
    device = teacher._weight.device
    u = np.concatenate([uniforms(spec.seed, examples.ids[i], examples.n_labels[i]) for i in batch])
    labels = np.concatenate([examples.tokens[i][examples.labels[i]] for i in batch]).astype(np.int64)
    u, labels = torch.from_numpy(u.astype(np.float32)).to(device), torch.from_numpy(labels).to(device)
    small = rows_at_a_time(teacher._weight, teacher.vocabulary)
    large = max(CHUNK_ROWS, small)  # the product wants many rows; on a CPU the passes over its result want few
    parts = []
    for at in range(0, len(states), large):
        logits = teacher.logits(states[at : at + large])
        for start in range(0, len(logits), small):
            rows = slice(start, start + small)
            chosen = slice(at + start, at + start + len(logits[rows]))
            parts.append(encode_chunk(logits[rows], spec, u[chosen], labels[chosen]))
    return OnDevice(parts)


class Packer:
    """Cuts encoded batches into examples and packs them, ``aside`` in a thread of its own, at most two batches behind.

    The packed rows are put into ``packed`` by example; leaving the block waits for all of them.
    """

    def __init__(self, spec, examples: Examples, dtype: Any, packed: dict[int, Any], aside: bool) -> None:
        self.spec, self.examples, self.dtype, self.packed = spec, examples, dtype, packed
        self.pool = ThreadPoolExecutor(1) if aside else None
        self.waiting: deque = deque()

    def __enter__(self) -> Packer:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=error[0] is not None)
        while self.waiting and error[0] is None:
            self.waiting.popleft().result()

    def add(self, batch: list[int], encoded: Any) -> None:
        """Raises UserError where the teacher's loss on an example, perhaps an earlier one, is not finite."""
        if self.pool is None:
            self._pack(batch, encoded)
            return
        self.waiting.append(self.pool.submit(self._pack, batch, encoded))
        if len(self.waiting) > 2:
            self.waiting.popleft().result()

    def _pack(self, batch: list[int], encoded: Any) -> None:
        import numpy as np

        from ..errors import UserError
        from ..kd.cache.codec import pack

        rows, at = encoded.rows(), 0
        for i in batch:
            own = rows.select(slice(at, at + self.examples.n_labels[i]))
            at += self.examples.n_labels[i]
            if not np.isfinite(own.stats["loss"]).all():
                name = self.examples.ids[i]
                raise UserError(f"teacher: its loss on example {name!r} is not finite (dtype {self.dtype}?)")
            self.packed[i] = pack(own, self.spec)


def _audited(todo: list[int], n_labels: list[int], count: int) -> set[int]:
    """Up to ``count`` examples spread evenly over the shard, AUDIT_TOKENS response tokens at most (but one example)."""
    chosen: set[int] = set()
    tokens = 0
    step = max(1, len(todo) // max(count, 1))
    for i in todo[step // 2 :: step][:count]:
        if chosen and tokens + n_labels[i] > AUDIT_TOKENS:
            continue
        chosen.add(i)
        tokens += n_labels[i]
    return chosen


def _audit(teacher: Teacher, spec, kept: list[tuple]) -> dict:
    from ..kd.cache.audit import STUDENT_MIX, audit_batch
    from ..kd.cache.codec import unpack

    torch = teacher._torch
    states, cut = (torch.cat([k[j].float() for k in kept]) for j in (0, 1))
    cut = torch.lerp(states, cut.to(states.device), STUDENT_MIX)
    return audit_batch(
        lambda piece: teacher.logits(states[piece]),
        lambda piece: teacher.logits(cut[piece]),
        cut.to(teacher._weight.device),
        [unpack(k[2], spec) for k in kept],
        teacher._weight,
    )


def _empty(spec):
    from ..kd.cache.rows import PackedRows

    return PackedRows(0, 0)
