"""On-policy distillation: the student answers prompts, and a loaded teacher scores the answers, each metered apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import UserError
from ..kd.cache.checks import check_vocabulary
from ..kd.losses.jsd import LiveTeacherRows
from ..models.fingerprint import tokenizer_hash
from ..models.flops import attended_whole, forward_flops, generation_flops, shape_of, training_flops
from ..models.logits import check_logits, output_layer
from ..models.sources import load_model, load_tokenizer
from ..teacher.generation.jobs import Prompt
from ..teacher.generation.transformers_engine import Sampling, TransformersEngine
from .batching import Batch, collate
from .examples import Examples
from .student import states_before_labels

if TYPE_CHECKING:
    from .job import Job

#: Names of the two phases in the sidecar.
SAMPLING, SCORING = "student_sampling", "teacher_scoring"


class LiveTeacher:
    """The teacher in the training's own process, with a count of what it and the sampling compute.

    Raises UserError where it and the student do not fit together.
    """

    def __init__(self, job: Job, student: Any, tokenizer: Any, options: dict[str, Any], max_length: int) -> None:
        if job.peers.world > 1:
            raise UserError("pipeline on_policy trains in one process; set training.processes and nodes to null")
        self.job, self.options, self.max_length = job, options, max_length
        spec, inputs = job.params.teacher, {}
        if "teacher" in job.inputs:
            inputs["model"] = Path(job.inputs["teacher"])
        theirs = load_tokenizer(spec, inputs)
        self.model = load_model(spec, inputs, device=job.peers.device)
        self.rule = check_logits(self.model)
        check_vocabulary(
            tokenizer_hash(theirs),
            int(output_layer(self.model).weight.shape[0]),
            tokenizer_hash(tokenizer),
            int(output_layer(student).weight.shape[0]),
            tokens=len(tokenizer),
        )
        size = job.training.micro_batch_size or job.training.batch_size
        sampling = Sampling(options["sampling_temperature"], options["top_p"], size)
        self.student = student
        self.engine = TransformersEngine(student, tokenizer, sampling)
        self.sampled = 0
        self.shapes = shape_of(student), shape_of(self.model)
        #: FLOPs so far by part; None where a shape is not known, or a checkpoint did not hold them.
        self.flops: dict[str, float] | None = {}
        if reason := next((shape for shape in self.shapes if isinstance(shape, str)), None):
            self.flops, self.reason = None, reason

    def rollout(self, step: int, examples: Examples, pieces: list[tuple[Batch, Any]], pad_id: int, packed: bool):
        """(labels, micro-batches with the teacher's rows) of a step: the student's answers to the batch's prompts, or,
        in 1 − ``share`` of the steps, the data's own. A function of the step and the student's weights."""
        random = np.random.Generator(np.random.PCG64([self.job.seed, step]))
        batches = [batch for batch, _ in pieces]
        if random.random() < self.options["share"]:
            with self.job.meter.phase(SAMPLING):
                batches = self._answered(batches, examples, int(random.integers(2**31)), pad_id, packed)
        with self.job.meter.phase(SCORING), torch.no_grad():
            rows = [self._scored(batch) for batch in batches]
        self._computed(batches)
        return sum(len(batch.labels) for batch in batches), list(zip(batches, rows, strict=True))

    def _computed(self, batches: list[Batch]) -> None:
        """Count what the teacher's scoring and the student's step on these batches compute."""
        lengths = [int(n) for batch in batches for n in batch.lengths]
        labels = sum(len(batch.labels) for batch in batches)
        if self.flops is not None:
            student, teacher = self.shapes
            attended, recomputed = attended_whole(lengths), bool(self.job.training.gradient_checkpointing)
            self._add(training_flops(student, sum(lengths), attended, labels, recomputed))
            self._add({"scoring": forward_flops(teacher, sum(lengths), attended, labels)})

    def _add(self, parts: Mapping[str, float]) -> None:
        for name, value in parts.items():
            self.flops[name] = self.flops.get(name, 0.0) + value

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: what was sampled and computed so far."""
        return {"sampled": self.sampled, "flops": self.flops}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """What ``state_dict`` gave; None of a checkpoint that held nothing of it."""
        if state is None:
            self.flops, self.reason = None, "the checkpoint that it went on from did not hold the operations"
        else:
            self.sampled = state["sampled"]
            self.flops = None if self.flops is None else state["flops"]

    def _answered(self, batches: list[Batch], examples: Examples, seed: int, pad_id: int, packed: bool) -> list[Batch]:
        found = []
        training = self.student.training
        self.student.eval()
        with torch.compiler.set_stance("force_eager"):  # a graph for each length of the cache costs more than it saves
            for number, batch in enumerate(batches):
                prompts = [self._prompt(examples, i) for i in batch.index]
                answers = self.engine.answer(prompts, seed + number)
                made = [len(answer.ids) for answer in answers]
                self.sampled += sum(made)
                if self.flops is not None:
                    parts = generation_flops(self.shapes[0], [len(p.prompt_ids) for p in prompts], made)
                    self._add({f"sampling_{name}": value for name, value in parts.items()})
                own = _as_examples(prompts, [answer.ids for answer in answers], examples.path)
                found.append(collate(own, np.arange(len(own)), pad_id, packed, self.job.peers.device))
        self.student.train(training)
        return found

    def _prompt(self, examples: Examples, index: int) -> Prompt:
        """What precedes an example's first label."""
        start, stop = int(examples.offsets[index]), int(examples.offsets[index + 1])
        first = int(np.flatnonzero(examples.labels[start:stop])[0])
        room = max(1, min(self.options["max_new_tokens"], self.max_length - first))
        return Prompt(examples.ids[index], tuple(examples.tokens[start : start + first].tolist()), "", room)

    def _scored(self, batch: Batch) -> LiveTeacherRows:
        layer = output_layer(self.model)
        return LiveTeacherRows(states_before_labels(self.model, batch), layer.weight, layer.bias, self.rule)


def _as_examples(prompts: list[Prompt], answers: list[list[int]], path: Path) -> Examples:
    """Prompts and their answers as examples, every token of an answer a label."""
    tokens = [np.asarray([*p.prompt_ids, *ids], dtype=np.int32) for p, ids in zip(prompts, answers, strict=True)]
    labels = [np.arange(len(t)) >= len(p.prompt_ids) for t, p in zip(tokens, prompts, strict=True)]
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens])]).astype(np.int64)
    return Examples([p.id for p in prompts], np.concatenate(tokens), np.concatenate(labels), offsets, path)
