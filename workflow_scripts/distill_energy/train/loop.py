"""The one training loop, for every pipeline."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from . import checkpoint
from .batching import Batch, Sampler, collate
from .budget import GOLD_SHARE, OWN_SHARE, evaluation_rows, evaluation_steps
from .data import TrainingData
from .feed import Feed
from .job import Job
from .learner import Learner
from .live_teacher import LiveTeacher
from .preemption import Preemption
from .progress import Progress
from .schedule import learning_rate
from .state import BestWeights, State

#: A checkpoint waits until this many times its own writing time has passed since the last: at most 5 % of the time.
CHECKPOINT_SPACING = 20
#: Examples in a batch without gradients: activations are not kept, so more of them fit.
EVALUATION_BATCH = 8
#: Least seconds between two readings of the meter outside evaluations.
METER_SPACING_S = 0.5


class Loop:
    """Trains a job's student until the last step or until the evaluation loss stops falling.

    Holds the three things that a training is made of: ``data``, ``learner`` (model with optimiser) and ``peers`` (the
    process group). Raises UserError for what in the job does not fit together.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.training, self.peers = job, job.training, job.peers
        if self.training.batch_size % self.peers.world:
            raise UserError(
                f"training.batch_size {self.training.batch_size} is not a multiple of its {self.peers.world} processes"
            )
        self.learner = learner = self.make_learner()
        self.data = data = TrainingData(job, learner.tokenizer, learner.vocabulary)
        self.live = None
        if learner.pipeline.live_teacher:
            longest = int(data.train.lengths().max())
            self.live = LiveTeacher(job, learner.student.lm, learner.tokenizer, learner.settings.options, longest)
        # A packed row has no padding, so its batch need not be of one length: random batches learn more in few steps.
        bucketed = not self.training.packing
        self.sampler = Sampler(data.train.lengths(), self.training.batch_size, job.seed, bucketed)
        self.labels = data.train.label_counts()
        self.feed = Feed(self._prepare, self.training.max_steps, self.peers.device)
        self.evaluations = set(evaluation_steps(self.training, self.eval_every))
        self.evaluation_batch_size = EVALUATION_BATCH
        self.state = State()
        self.best = BestWeights()
        self.probe = learner.probe()
        self.checkpoints = job.work / "checkpoints"
        self.last_checkpoint = -math.inf
        self.checkpoint_step = 0
        self.checkpoint_s = 0.0
        self.meter_read = time.monotonic()
        self.preemption = Preemption()
        self.ending = False  # whether some process was told to end, as all of them know
        self.gold = data.gold_rows(evaluation_rows(self.training, GOLD_SHARE))
        self.own = data.own_rows(evaluation_rows(self.training, OWN_SHARE))

    # --- what another recipe may choose (see ``reference.py``) -----------------------------------------------------

    def make_learner(self) -> Learner:
        """The model with its optimiser."""
        return Learner(self.job)

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        return self.training.eval_every

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0)."""
        t = self.training
        return learning_rate(step, t.learning_rate, t.warmup_steps, t.max_steps, t.schedule)

    def divisor(self, batch_terms: int, micro_labels: int, micro_batches: int) -> int:
        """What the sum over a micro-batch is divided by before its gradient is added: the terms of the whole batch."""
        return batch_terms

    def stops(self) -> bool:
        """Whether to stop after an evaluation."""
        return self.state.stale >= self.training.patience

    def final_weights(self) -> Any:
        """The weights to save: the best evaluation's. All processes call it together."""
        return self.learner.export() if self.best.step is None else self.best.weights

    # --- run -----------------------------------------------------------------------------------------------------

    def run(self) -> State:
        """Train to the end. Raises UserError for a loss that is not finite.

        SIGTERM ends the process (as it would without this loop) after the step that runs, its checkpoint written.
        """
        self._resume()
        state, last = self.state, self.training.max_steps
        progress = Progress(last, state.step, self.job.name, self.job.log, self.peers.leads)
        offset, begin, first = state.seconds, time.monotonic(), state.step
        try:
            with self.preemption:
                while state.step < last and not state.stop_reason:
                    with self._compiling(state.step == first):
                        row = self._step()
                    evaluated = state.step in self.evaluations
                    state.seconds = offset + time.monotonic() - begin
                    if evaluated:
                        row |= self._evaluate()
                        state.seconds = offset + time.monotonic() - begin
                    row |= {"seconds": state.seconds, **self._joules(force=evaluated)}
                    state.rows.append(row)
                    progress.update(state.step, row["train_loss"], self._rate(), self._joules_per_token(row))
                    self._checkpoint()
                    if self._told_to_end():
                        self._end()
        finally:
            self.feed.close()
            progress.close()
        state.stop_reason = state.stop_reason or "max_steps"
        return state

    def _compiling(self, first: bool) -> Any:
        """The compiler runs in a process's first step: booked apart, the step's own work in it."""
        booked = first and self.training.compile and self.live is None  # a student that samples has phases in its steps
        return self.job.meter.phase("compile") if booked else contextlib.nullcontext()

    def _prepare(self, step: int) -> tuple[int, int, list[tuple[Batch, Any]]]:
        """Labels of a step's whole batch, terms of its loss, and this process's micro-batches with the teacher's rows.

        A function of the step alone; runs in the feed's thread.
        """
        data, learner, peers = self.data, self.learner, self.peers
        index = self.sampler.batch(step)
        pieces = []
        for piece in data.micro_batches(index[peers.rank :: peers.world], learner.packed_tokens):
            batch = collate(data.train, piece, learner.pad_id, self.training.packing, peers.device)
            pieces.append((batch, data.teacher_rows(batch)))
        n_labels = int(self.labels[index].sum())
        return n_labels, data.train.terms(n_labels, len(index)), pieces

    def _step(self) -> dict[str, Any]:
        """One optimiser step over this process's share of the batch. Returns its row of the trajectory."""
        state, learner, training, peers = self.state, self.learner, self.training, self.peers
        # Random numbers (dropout) are a function of the step, so that no generator's state needs saving.
        torch.manual_seed((job_seed(self.job.seed, state.step) + peers.rank) % 2**63)
        n_labels, terms, pieces = self.feed.take(state.step)
        if self.live is not None:  # what was made ready are prompts: the student answers them
            n_labels, pieces = self.live.rollout(state.step, self.data.train, pieces, learner.pad_id, training.packing)
            terms = n_labels
        sums = torch.zeros(3, dtype=torch.float64, device=peers.device)
        padding = processed = 0
        for number, (batch, teacher) in enumerate(pieces):
            last = number == len(pieces) - 1
            with contextlib.nullcontext() if last else learner.no_sync():
                total, ce, kl = learner.module(batch, teacher)
                # Data-parallel wrappers average gradients over processes; the terms of all of them are the divisor.
                divisor = self.divisor(terms, len(batch.labels), len(pieces) * peers.world)
                (total * (peers.world / divisor)).backward()
            sums += torch.stack([total.detach().double(), ce.double(), kl.double()])
            padding += batch.padding
            processed += batch.processed
        sums = peers.reduce(sums)
        padding, processed, told = peers.reduce_counts(padding, processed, int(self.preemption.asked))
        self.ending = told > 0
        norm = learner.clip(training.gradient_clip)
        train_loss, (ce, kl), grad_norm = float(sums[0]) / terms, (sums[1:] / n_labels).tolist(), float(norm)
        for name, value in (("loss", train_loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                raise UserError(
                    f"{self.job.name}: {name} is {value} at step {state.step + 1} (learning rate "
                    f"{training.learning_rate:g}, precision {learner.precision.used}); lower training.learning_rate"
                )
        rate = self.rate(state.step)
        probing = state.step == 0 or state.step + 1 in self.evaluations
        if probing:
            self.probe.start()
        learner.optimizer.step(rate, state.step)
        learner.module.zero_grad(set_to_none=True)
        share_changed = self.probe.share() if probing else None
        if peers.leads:
            for kind, count in (("processed", processed), ("loss", n_labels), ("padding", padding)):
                self.job.meter.add_tokens(kind, count)
        state.step += 1
        state.tokens += processed
        state.loss_tokens += n_labels
        state.padding += padding
        row = {"step": state.step, "tokens": state.tokens, "loss_tokens": state.loss_tokens, "lr": rate}
        row |= {"train_loss": train_loss, "ce": ce, "kl": kl, "grad_norm": grad_norm}
        return row if share_changed is None else row | {"share_changed": share_changed}

    # --- evaluation ----------------------------------------------------------------------------------------------

    def _evaluate(self) -> dict[str, Any]:
        """Validation losses; decides on the best weights and on stopping. Booked apart by the meter."""
        state, begin = self.state, time.monotonic()
        with self.job.meter.phase("evaluation") as phase:
            gold = self._mean_loss(self.gold)
            own = gold if self.own is None else self._mean_loss(self.own)
        state.evaluation_s += time.monotonic() - begin
        state.add_evaluation_joules(getattr(phase, "joules", None))
        if not math.isfinite(own):
            raise UserError(f"{self.job.name}: evaluation loss is {own} at step {state.step}")
        if state.note_evaluation(own, gold, self.training.epsilon):
            self.best.keep(self.learner, state.step)
        if self.stops():
            state.stop_reason = "early_stopping"
        if self.peers.leads:
            self.job.log(f"{self.job.name}: step {state.step}: validation loss {own:.4f} (gold {gold:.4f})")
        return {"eval_loss": own, "gold_eval_loss": gold}

    @torch.no_grad()
    def _mean_loss(self, rows: Any) -> float:
        """Cross-entropy a label over ``rows`` (examples), of pairs the loss a pair, shared among the processes."""
        learner, peers = self.learner, self.peers
        learner.module.eval()
        order = rows.lengths().argsort(kind="stable")[peers.rank :: peers.world]
        size = self.evaluation_batch_size
        total = torch.zeros(1, dtype=torch.float64, device=peers.device)
        rounds = math.ceil(math.ceil(len(rows) / peers.world) / size)  # in every process, also where fewer are left
        for i in range(0, rounds * size, size):
            # Sharded weights are gathered by all processes together, so one with nothing left repeats its first row.
            part = order[i : i + size]
            idle = len(part) == 0
            part = rows_or_first(part)
            batch = collate(rows, part, learner.pad_id, self.training.packing, peers.device)
            beside = rows.rows(batch)
            loss, _, _ = learner.module(batch, beside, beside is None)
            if not idle:
                total += loss.double()
        learner.module.train()
        return float(peers.reduce(total)) / rows.terms(int(rows.label_counts().sum()), len(rows))

    # --- meter ---------------------------------------------------------------------------------------------------

    def _read_meter(self) -> float | None:
        """Joules so far, of all attempts; None if unknown."""
        if not self.peers.leads or self.job.joules_before is None:
            return None
        now = self.job.meter.joules()
        return None if now is None else self.job.joules_before + now

    def _joules(self, force: bool) -> dict[str, float | None]:
        now = time.monotonic()
        if not force and now - self.meter_read < METER_SPACING_S:
            return {}
        self.meter_read = now
        joules = self._read_meter()
        return {"joules": joules, "joules_eval": None if joules is None else self.state.evaluation_j}

    def _rate(self) -> float:
        return self.state.tokens / self.state.seconds if self.state.seconds else 0.0

    def _joules_per_token(self, row: dict[str, Any]) -> float | None:
        joules = row.get("joules")
        if joules is not None:
            self.shown = joules / self.state.tokens
        return getattr(self, "shown", None)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed."""
        return {"version": self.job.version, "world": self.peers.world, "precision": self.learner.precision.used}

    def _checkpoint(self) -> None:
        """Write one if it is time."""
        state, every = self.state, self.training.checkpoint_every
        if state.step - self.checkpoint_step < every or state.step >= self.training.max_steps or state.stop_reason:
            return
        spacing = CHECKPOINT_SPACING * self.checkpoint_s
        if not self.peers.agree(time.monotonic() - self.last_checkpoint < spacing):
            self._write_checkpoint()

    def _told_to_end(self) -> bool:
        """Whether SIGTERM came, the same in all processes: of several, all know of what came before the last step."""
        return self.ending if self.peers.world > 1 else self.preemption.asked

    def _end(self) -> None:
        """End this process by the signal that was put off, after a checkpoint; the meter books it as preempted."""
        if self.checkpoint_step != self.state.step:
            self._write_checkpoint()
        if self.peers.world > 1:
            torch.distributed.barrier()  # the leading process has its checkpoint before the others are gone
        if self.peers.leads:
            self.job.log(f"{self.job.name}: told to end (SIGTERM); a checkpoint of step {self.state.step} is written")
        self.preemption.now()

    def _write_checkpoint(self) -> None:
        state, now = self.state, time.monotonic()
        if self.learner.split or self.peers.leads:
            with self.job.meter.phase("checkpoint"):
                content = {"identity": self.identity(), "state": state.to_dict(), "best": self.best.state_dict()}
                content |= self.learner.state_dict()
                if self.live is not None:
                    content["live"] = self.live.state_dict()
                checkpoint.save(self.checkpoints, state.step, content, self._part(), self._all_written)
        self.checkpoint_step = state.step
        self.checkpoint_s = time.monotonic() - now
        state.checkpoint_s += self.checkpoint_s
        self.last_checkpoint = time.monotonic()

    def _all_written(self) -> None:
        """Wait for all processes, where each writes a part of the weights."""
        if self.learner.split:
            self.peers.barrier()

    def _part(self) -> int:
        """Which file of a checkpoint is this process's: with whole weights, all of them share rank 0's."""
        return self.peers.rank if self.learner.split else 0

    def _newest_of_all(self) -> dict[str, Any] | None:
        """The newest checkpoint that every process can read its part of; None if there is none."""
        last = math.inf
        while True:
            found = checkpoint.load_latest(self.checkpoints, self.job.log, self.identity(), self._part(), last)
            step = -1 if found is None else found["state"]["step"]
            common, newest = self.peers.least(step), -self.peers.least(-step)
            if common == newest:
                return found
            if self.peers.leads:
                self.job.log(
                    f"{self.job.name}: step {newest} is not whole in every process; all go on from an earlier one"
                )
            last = common

    def _resume(self) -> None:
        saved = self._newest_of_all()
        if saved is None:
            return
        self.state = State.from_dict(saved["state"])
        self.checkpoint_step = self.state.step
        self.best.load_state_dict(saved["best"])
        self.learner.load_state_dict(saved)
        if self.live is not None:
            self.live.load_state_dict(saved.get("live"))
        if self.peers.leads:
            self.job.log(f"{self.job.name}: resumed after step {self.state.step}")


def job_seed(seed: int, step: int) -> int:
    """A seed for one step of one run."""
    return (seed + 1) * 1_000_000_007 + step * 1_009


def rows_or_first(part: Any) -> Any:
    """``part``, or the first example where it is empty."""
    return part if len(part) else np.zeros(1, dtype=np.int64)
