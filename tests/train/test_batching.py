"""Order of the data, batches as tensors, and examples kept apart."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill_energy.config.training import Training
from distill_energy.errors import UserError
from distill_energy.models.sources import load_model
from distill_energy.train.batching import Sampler, collate, cut_by_tokens, epoch_batches
from distill_energy.train.budget import evaluation_rows, evaluation_steps
from distill_energy.train.examples import read_examples
from distill_energy.train.schedule import learning_rate
from distill_energy.train.student import states_before_labels

from .tiny import MODEL, VOCABULARY, params, run, training


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=300),
    batch=st.integers(1, 16),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_an_epoch_visits_every_example_once(lengths, batch, seed, epoch):
    batches = epoch_batches(np.array(lengths), batch, seed, epoch)
    assert batches.shape[1] == batch
    if len(lengths) >= batch:
        flat = batches.ravel().tolist()
        assert len(set(flat)) == len(flat) == len(lengths) - len(lengths) % batch
    assert np.array_equal(batches, epoch_batches(np.array(lengths), batch, seed, epoch))


def test_bucketing_leaves_little_padding_and_the_order_random():
    lengths = np.random.default_rng(0).integers(30, 1000, 4000)

    def padding(batches):
        chosen = lengths[batches]
        return 1 - chosen.sum() / (chosen.max(1) * batches.shape[1]).sum()

    bucketed = epoch_batches(lengths, 4, 0, 0)
    assert padding(bucketed) < 0.02 < 0.3 < padding(epoch_batches(lengths, 4, 0, 0, bucketed=False))
    means = lengths[bucketed].mean(1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.1


def test_a_position_is_one_integer():
    """Any step's batch can be asked for directly: resuming needs no state."""
    lengths = np.arange(1, 31)
    one, other = Sampler(lengths, 4, 3), Sampler(lengths, 4, 3)
    walked = [one.batch(step).tolist() for step in range(20)]
    assert [other.batch(step).tolist() for step in (19, 2, 11)] == [walked[19], walked[2], walked[11]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 100))
def test_cut_by_tokens(lengths, limit):
    index = np.arange(len(lengths))
    groups = cut_by_tokens(index, np.array(lengths), limit)
    assert np.concatenate(groups).tolist() == index.tolist()
    assert all(len(g) == 1 or np.array(lengths)[g].sum() <= limit for g in groups)


@pytest.mark.parametrize("packed", [False, True])
def test_examples_do_not_see_each_other(data, packed):
    """Hidden states at label positions are those of each example alone."""
    examples = read_examples(data["data"] / "train.parquet", VOCABULARY)
    model = load_model(MODEL, {}, dtype="float32", device="cpu")
    index = np.array([3, 17, 8])
    with torch.no_grad():
        batch = collate(examples, index, 0, packed)
        rows = states_before_labels(model, batch)
        alone = [states_before_labels(model, collate(examples, np.array([i]), 0, False)) for i in index]
    assert torch.allclose(rows, torch.cat(alone), atol=1e-5)
    assert (batch.padding == 0) == packed
    assert batch.processed == examples.lengths()[index].sum()


def test_labels_are_predicted_from_the_token_before(data):
    examples = read_examples(data["data"] / "train.parquet", VOCABULARY)
    batch = collate(examples, np.array([0, 1]), 0, False)
    flat = batch.input_ids.flatten()
    assert torch.equal(flat[batch.before + 1], batch.labels)


def test_schedule():
    rates = [learning_rate(step, 1.0, 10, 110) for step in range(110)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[60] == pytest.approx(0.5)  # half of the cosine
    assert 0 < rates[-1] < 1e-3 and rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(99, 2.0, 10, 110, "constant") == 2.0


def test_evaluation_stays_below_a_tenth():
    """With the shares of the budget and a backward pass at twice the forward's cost."""
    for steps, every, batch in ((40, 20, 4), (1000, 50, 4), (300, 7, 8)):
        recipe = Training(**training(max_steps=steps, eval_every=every, batch_size=batch))
        rows = evaluation_rows(recipe, 0.06) + evaluation_rows(recipe, 0.035)
        trained = steps * batch * 3
        evaluated = rows * len(evaluation_steps(recipe))
        assert evaluated <= 0.12 * trained
    assert evaluation_steps(Training(**training(max_steps=45, eval_every=20))) == [20, 40, 45]


def test_data_of_another_tokenizer_is_refused(tmp_path, data):
    import pyarrow.parquet as pq

    for split in ("train", "validation"):
        table = pq.ParquetFile(data["data"] / f"{split}.parquet").read()
        (tmp_path / "d").mkdir(exist_ok=True)
        marked = table.replace_schema_metadata({"tokenizer_sha256": "0" * 64})
        pq.write_table(marked, tmp_path / "d" / f"{split}.parquet")
    with pytest.raises(UserError, match="made with the tokenizer 000000000000, the student's is"):
        run(tmp_path, params(), {**data, "data": tmp_path / "d"})
