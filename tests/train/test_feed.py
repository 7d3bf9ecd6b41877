"""Batches made ready ahead: the same order and the same bits as made on time, bounded, errors where they belong."""

import threading
import time

import pytest

from distill_energy.errors import UserError
from distill_energy.train import checkpoint, loop
from distill_energy.train.feed import Feed

from .test_kd import make_cache
from .tiny import context, params, run

COMPUTED = ("step", "tokens", "loss_tokens", "train_loss", "ce", "kl", "eval_loss", "gold_eval_loss", "grad_norm")


class OnTime:
    """What a feed is compared with: everything in the thread that asks."""

    def __init__(self, prepare, last, device="cpu"):
        self.take = prepare

    def close(self):
        pass


@pytest.fixture(scope="module")
def inputs(data, tmp_path_factory):
    return {**data, "teacher_logits": make_cache(tmp_path_factory.mktemp("cache") / "c", data)}


def test_order_from_any_step_in_another_thread():
    seen = []
    feed = Feed(lambda step: seen.append(threading.current_thread().name) or step * step, last=20)
    assert [feed.take(step) for step in range(7, 20)] == [step * step for step in range(7, 20)]
    assert set(seen) == {"distill-energy-feed"} and len(seen) == 13
    with pytest.raises(ValueError, match="step 20 was asked for"):
        feed.take(20)
    feed.close()
    assert feed.take(3) == 9
    feed.close()


def test_it_does_not_run_away():
    made = []
    feed = Feed(made.append, last=1000, depth=2)
    feed.take(0)
    time.sleep(0.4)
    assert made == [0, 1, 2, 3]  # one taken, two waiting, one in hand
    feed.take(1)
    time.sleep(0.4)
    assert made == [0, 1, 2, 3, 4]
    feed.close()
    assert "distill-energy-feed" not in {thread.name for thread in threading.enumerate()}
    assert len(made) == 5


def test_an_error_is_raised_at_its_step():
    def prepare(step):
        if step == 3:
            raise UserError("a torn shard")
        return step

    feed = Feed(prepare, last=10)
    assert [feed.take(step) for step in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="a torn shard"):
        feed.take(3)
    assert "distill-energy-feed" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("changes", [{"micro_batch_size": 2}, {"packing": True}])
def test_the_same_bits_as_on_time_and_after_a_resume(tmp_path, inputs, monkeypatch, changes):
    parameters = params(
        "kd", pipeline={"alpha": 0.3, "temperature": 2.0}, max_steps=25, eval_every=6, checkpoint_every=4, **changes
    )
    _, ahead, ctx = run(tmp_path / "ahead", parameters, inputs)
    saved = [step for step, _ in checkpoint.checkpoints(ctx.work / "checkpoints")]
    assert saved
    _, again, _ = run(tmp_path / "ahead", parameters, inputs)  # from the last checkpoint
    monkeypatch.setattr(loop, "Feed", OnTime)
    _, on_time, _ = run(tmp_path / "on-time", parameters, inputs)
    for rows in (ahead, again):
        assert [[row[key] for key in COMPUTED] for row in rows] == [[row[key] for key in COMPUTED] for row in on_time]


def test_rows_that_do_not_fit_the_labels_end_the_training(tmp_path, inputs):
    """The feed's own UserError is the stage's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from distill_energy.store.atomic import write_parquet

    for split in ("train", "validation"):
        table = pq.ParquetFile(inputs["data"] / f"{split}.parquet").read()
        masks = [[*mask[:-1], 0] for mask in table["loss_mask"].to_pylist()]
        place = table.column_names.index("loss_mask")
        column = pa.array(masks, pa.list_(pa.uint8()))
        write_parquet(tmp_path / "data" / f"{split}.parquet", table.set_column(place, "loss_mask", column))
    parameters = params("kd", pipeline={"alpha": 0.3, "temperature": 2.0})
    with pytest.raises(UserError, match=r"\d+ cached tokens for \d+ labels"):
        run(tmp_path / "run", parameters, {**inputs, "data": tmp_path / "data"})
    assert not (context(tmp_path / "run", parameters, inputs).out / "model").exists()
