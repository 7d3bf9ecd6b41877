"""A small file that inflates to gigabytes is refused by its footer, in one line, before it is read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_energy.answer.aggregate import read_ledger, read_summary
from distill_energy.data.files import _parquet
from distill_energy.errors import UserError
from distill_energy.forecast.rates import read_rates
from distill_energy.kd.cache import CacheReader
from distill_energy.ledger.carbon import spent_over_time
from distill_energy.ledger.tables import table_of
from distill_energy.report.figures.power import read_trace
from distill_energy.store.artifact import damage, produced
from distill_energy.store.bounded import check

from .test_store import make


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    """Some 10 kB of zeros that inflate to 300 MB."""
    path = tmp_path_factory.mktemp("bomb") / "shard-00000.parquet"
    value = bytes(100 << 20)
    schema = pa.schema([("payload", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as out:
        for _ in range(3):
            out.write_table(pa.table({"payload": pa.array([value], pa.binary())}))
    assert path.stat().st_size < 100_000
    return path


READERS = {
    "cache": lambda path: CacheReader(path.parent),
    "data": lambda path: list(_parquet(path)),
    "rates": read_rates,
    "ledger": read_ledger,
    "summary": read_summary,
    "trace": read_trace,
    "check": check,
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it_by_name(bomb, reader):
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match=rf"{bomb.name}: \d+ bytes inflate to 3\d+; refused") as caught:
        READERS[reader](bomb)
    assert "\n" not in str(caught.value) and pa.total_allocated_bytes() - before < 10 << 20


def test_an_artifact_with_one_is_damaged(bomb):
    record = make(produces=[p.model_dump() for p in produced(bomb.parent)])
    assert "bytes inflate to" in damage(bomb.parent, record)


def test_readers_for_which_a_file_is_whole_or_not_there_take_it_for_neither(bomb, tmp_path):
    (tmp_path / "power.parquet").write_bytes(bomb.read_bytes())
    with pytest.raises(UserError, match="inflate to"):
        spent_over_time(tmp_path)
    assert table_of(bomb) is None


def test_rows_that_cost_nothing_on_disk_are_counted(tmp_path):
    path = tmp_path / "runs.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000_000, pa.int8()), pa.array(["yes"]))
    pq.write_table(pa.table({"x": column}), path, row_group_size=20_000_000)
    with pytest.raises(UserError, match="inflate to"):
        check(path)


def test_honest_tables_pass(tmp_path):
    pq.write_table(pa.table({"x": [0] * 1_000_000, "y": ["same"] * 1_000_000}), tmp_path / "x.parquet")
    check(tmp_path / "x.parquet")
