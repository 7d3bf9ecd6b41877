"""A grid's intensity over time: a run's grams follow from when its joules were spent."""

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_energy.errors import UserError
from distill_energy.ledger.carbon import apply_grid, read_series, spent_over_time

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


def trace(folder, joules_by_minute, counter=True):
    """A power trace whose device spends so many joules in each minute from noon on."""
    total, rows = 0.0, []
    for minute, joules in enumerate([0.0, *joules_by_minute]):
        total += joules
        rows.append(
            {
                "attempt": "a",
                "device": "d",
                "utc": NOON + dt.timedelta(minutes=minute),
                "watts": None if counter else joules / 60,
                "counter_j": total if counter else None,
            }
        )
    kinds = [("attempt", pa.string()), ("device", pa.string()), ("utc", pa.timestamp("us", tz="UTC"))]
    schema = pa.schema([*kinds, ("watts", pa.float64()), ("counter_j", pa.float64())])
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "power.parquet")
    return str(folder)


@pytest.fixture
def series(tmp_path):
    path = tmp_path / "grid.csv"
    path.write_text("utc,g_per_kwh\n2026-01-01T11:00:00Z,100\n2026-01-01T12:30:00Z,400\n2026-01-01T13:30:00Z,0\n")
    return path


@pytest.mark.parametrize("counter", [True, False])
def test_weighted_by_when_the_joules_were_spent(tmp_path, series, counter):
    """10 kJ before half past, 30 kJ after it: 100 and 400 g/kWh weigh 1 to 3."""
    folder = trace(tmp_path / "x", [1000.0] * 10 + [0.0] * 20 + [1000.0] * 30, counter)
    rows = [{"total_j": 40_000.0, "path": folder}]
    apply_grid(rows, {"pue": 1.5, "grid": {"series": str(series)}})
    assert rows[0]["intensity_g_per_kwh"] == pytest.approx(325.0)
    assert rows[0]["co2e_g"] == pytest.approx(40_000 / 3.6e6 * 1.5 * 325.0)
    assert rows[0]["grid_source"] == "time series grid.csv"


def test_what_it_does_not_cover_is_unknown_with_the_reason(tmp_path, series):
    late = trace(tmp_path / "late", [10.0] * 160)  # to 14:40, the last interval ends at 14:30
    none = str(tmp_path / "none")
    rows = [{"total_j": 10.0, "path": late}, {"total_j": 10.0, "path": none}]
    apply_grid(rows, {"pue": 1.0, "grid": {"series": str(series)}})
    assert [row["co2e_g"] for row in rows] == [None, None]
    assert all("does not cover" in row["grid_source"] for row in rows)
    assert spent_over_time(none) == ([], [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("utc,g_per_kwh\nyesterday,100\n", "line 2: not a time"),
        ("utc,g_per_kwh\n2026-01-01,many\n", "line 2: not a time and a number"),
        ("utc,g_per_kwh\n2026-01-01,-1\n", "line 2: g_per_kwh is -1.0"),
        ("utc,g_per_kwh\n2026-01-02,1\n2026-01-01,1\n", "line 3: its time is not after"),
        ("utc,g_per_kwh\n", "holds no row"),
        ("when,g\n2026-01-01,1\n", "line 2: not a time"),
    ],
)
def test_wrong_series_are_named(tmp_path, text, words):
    path = tmp_path / "grid.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_series(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_series(tmp_path / "absent.csv")
