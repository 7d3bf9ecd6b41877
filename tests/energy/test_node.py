"""A meter of the whole node, outside it: shown beside the sum of parts, and never at the work's cost."""

import datetime as dt
import subprocess
import sys
import time

import pytest

from distill_energy import measure
from distill_energy.config.load import load_config
from distill_energy.energy import Meter, MeterConfig, fold_attempts
from distill_energy.energy.account import node_energy
from distill_energy.energy.sensors import node as sensor
from distill_energy.errors import UserError
from distill_energy.ledger.rows import row_of
from distill_energy.report.page import node_table
from distill_energy.store import sidecar as schema
from distill_energy.store.sidecar import explained, total

from .fakes import Power

STREAM = "while true; do echo 900; sleep 0.2; done"


def measured(tmp_path, seconds=1.5, **node):
    config = MeterConfig(interval_s=0.1, cpu="off", node=node)
    with Meter(tmp_path / "a", config) as meter:
        time.sleep(seconds)
    (part,) = [c for c in meter.attempt.components if c.component == "node"]
    return meter.attempt, part


def test_a_command_is_shown_beside_the_parts_and_in_no_total(gpus, tmp_path):
    gpus.add(Power("const", 600.0))
    attempt, part = measured(tmp_path, command=STREAM)
    assert part.gross_j == pytest.approx(900 * attempt.wall_s, rel=0.01)
    assert (part.source, part.method, part.in_total) == ("measured", "node_power_integral", False)
    assert total(attempt.components)[0] == pytest.approx(600 * attempt.wall_s, rel=0.01)
    energy, quality, _ = fold_attempts([attempt])
    assert energy.node_explained == pytest.approx(2 / 3, rel=0.02) and quality.flags == []
    assert not [flag for flag in quality.flags if flag.startswith("node")]


def test_a_command_that_ends_is_started_again(gpus, tmp_path):
    gpus.add(Power("const", 600.0))
    attempt, part = measured(tmp_path, 3.3, command=f"echo x >> {tmp_path}/calls; echo 0.9 kW")
    assert part.gross_j == pytest.approx(900 * attempt.wall_s, rel=0.01)
    assert 3 <= len((tmp_path / "calls").read_text().split()) <= 5


def test_in_total_the_node_stands_in_its_parts_place(gpus, tmp_path):
    gpus.add(Power("const", 600.0))
    config = MeterConfig(interval_s=0.1, cpu="off", node={"command": STREAM, "in_total": True})
    with Meter(tmp_path / "a", config) as meter:
        with meter.phase("x"):
            time.sleep(1.5)
        running = meter.joules()
    gross, _, source, _ = total(meter.attempt.components)
    assert gross == pytest.approx(900 * meter.attempt.wall_s, rel=0.01) and source == "measured"
    assert running == pytest.approx(gross, rel=0.4)
    assert meter.attempt.phases[0].gross_j == pytest.approx(gross, rel=0.1)
    assert [c.component for c in meter.attempt.components if c.in_total] == ["node"]
    assert explained(meter.attempt.components) == pytest.approx(2 / 3, rel=0.02)


@pytest.mark.parametrize(
    ("command", "flag", "said"),
    [
        ("sleep 60", "node_hung", "said nothing for"),
        ("exit 7", "node_died", "code 7"),
        ("no-such-program-here", "node_died", "code 127"),
        ("echo watts unknown; sleep 1", "node_garbage", "watts unknown"),
        ("echo 3 MW; sleep 1", "node_garbage", "3 MW"),
        ("echo nan; sleep 1", "node_garbage", "nan"),
        ("true", "node_garbage", "printed nothing"),
    ],
)
def test_what_goes_wrong_is_a_flag_and_costs_the_work_nothing(gpus, tmp_path, command, flag, said):
    gpus.add(Power("const", 600.0))
    if flag == "node_hung":
        command = f"trap '' TERM; {command}"
    attempt, part = measured(tmp_path, 1.2, command=command, timeout_s=0.8)
    assert part.gross_j is None and part.reason and part.source == "unavailable"
    assert flag in attempt.quality.flags
    assert any(said in note for note in attempt.quality.notes), attempt.quality.notes
    assert total(attempt.components)[0] == pytest.approx(600 * attempt.wall_s, rel=0.01)
    assert attempt.outcome == "completed" and attempt.quality.gaps == 0


def test_no_command_is_left_behind(gpus, tmp_path):
    gpus.add(Power("const", 600.0))
    measured(tmp_path, 0.4, command=f"echo $$ > {tmp_path}/pid; while true; do echo 1; sleep 0.1; done")
    pid = int((tmp_path / "pid").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    assert state in ("", "Z")


def rows(path, start, end, column="watts", value=900.0, step=0.5):
    lines, t = [f"utc,{column}"], start
    while t < end:
        lines.append(f"{dt.datetime.fromtimestamp(t, dt.UTC).isoformat()},{value}")
        t += step
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("column", "value"), [("watts", 900.0), ("mW", 900_000), ("kW", 0.9)])
def test_a_csv_with_its_unit(gpus, tmp_path, column, value):
    gpus.add(Power("const", 600.0))
    now = time.time()
    rows(tmp_path / "pdu.csv", now - 30, now + 0.9, column, value)
    attempt, part = measured(tmp_path, 1.0, csv=str(tmp_path / "pdu.csv"))
    assert part.gross_j == pytest.approx(900 * attempt.wall_s, rel=0.01)


def test_a_clock_that_is_off_is_named_and_corrected_by_the_offset(gpus, tmp_path):
    gpus.add(Power("const", 600.0))
    now = time.time()
    rows(tmp_path / "pdu.csv", now + 3600 - 30, now + 3600 + 2)
    attempt, part = measured(tmp_path, 1.0, csv=str(tmp_path / "pdu.csv"))
    assert part.gross_j is None and "node_clock" in attempt.quality.flags
    attempt, part = measured(tmp_path / "again", 0.5, csv=str(tmp_path / "pdu.csv"), offset_s=-3600.0)
    assert part.gross_j == pytest.approx(900 * attempt.wall_s, rel=0.01)


@pytest.mark.parametrize("text", ["utc,MW\n2026-01-01,1\n", "a,b\n1,2\n"])
def test_a_csv_without_the_columns_says_so(gpus, tmp_path, text):
    gpus.add(Power("const", 600.0))
    (tmp_path / "pdu.csv").write_text(text)
    attempt, part = measured(tmp_path, 0.3, csv=str(tmp_path / "pdu.csv"))
    assert part.gross_j is None and "node_garbage" in attempt.quality.flags and "columns are" in part.reason


def test_a_csv_that_is_not_there_says_so(gpus, tmp_path):
    gpus.add(Power("const", 600.0))
    attempt, part = measured(tmp_path, 0.3, csv=str(tmp_path / "none.csv"))
    assert part.gross_j is None and "none.csv" in part.reason and "node_died" in attempt.quality.flags


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("212", (None, 212.0)),
        ("212.5 W", (None, 212.5)),
        ("1.2e3mW", (None, 1.2)),
        ("2026-01-01T00:00:00Z 0.2 kW", (1767225600.0, 200.0)),
        ("1767225600.5, 200", (1767225600.5, 200.0)),
    ],
)
def test_lines(line, found):
    assert sensor.parse_line(line) == found


def test_readings_that_do_not_reach_the_window_are_unknown():
    late = node_energy([(float(t), None, 100.0) for t in range(20)], 10.0, 60.0)
    assert late.gross_j is None and "node_gap" in late.flags
    assert "from -10.0 to 9.0 s" in late.reason
    hole = [(float(t), None, 100.0) for t in range(60) if not 20 < t < 40]
    bridged = node_energy(hole, 0.0, 59.0)
    assert bridged.gross_j == pytest.approx(5900) and bridged.flags == ["node_gap"] and bridged.error_j >= 2000


def test_ledger_and_page(gpus, tmp_path):
    from distill_energy.energy.command import run_command

    gpus.add(Power("const", 600.0))
    config = MeterConfig(interval_s=0.1, cpu="off", node={"command": STREAM})
    record, _ = run_command([sys.executable, "-c", "import time; time.sleep(1)"], tmp_path, "x", config)
    row = row_of(record, str(tmp_path))
    assert row["node_j"] == pytest.approx(900 * row["wall_s"], rel=0.02)
    assert row["node_explained"] == pytest.approx(2 / 3, rel=0.03)
    assert row["total_j"] == pytest.approx(600 * row["wall_s"], rel=0.02)
    (line,) = node_table([row], lambda kwh: f"{kwh * 3.6e6:.0f} J")
    assert line["explained"].startswith("67") and line["count"] == 1
    assert schema.parse(schema.dump(record), "x").energy.node_explained == record.energy.node_explained


def test_energy_run_says_it(gpus, tmp_path):
    gpus.add(Power("const", 600.0))
    command = [sys.executable, "-m", "distill_energy", "energy", "run", "--cpu", "off", "--out", tmp_path]
    done = subprocess.run([*command, "--node", STREAM, "--", "sleep", "1"], capture_output=True, text=True)
    assert done.returncode == 0 and "node: " in done.stderr and "of which the parts explain 6" in done.stderr
    done = subprocess.run([*command, "--node", "x", "--node-csv", "y", "--", "true"], capture_output=True, text=True)
    assert done.returncode == 2 and "one of --node and --node-csv" in done.stderr


def test_configuration_refuses_both_and_neither(repo, tmp_path):
    base = (repo / "config.yaml").read_text()
    for text in ("node: {}", "node: {command: x, csv: y}", "node: {command: x, unit: MW}"):
        path = tmp_path / "c.yaml"
        path.write_text(base.replace("\nenergy:", f"\nenergy:\n  {text}", 1))
        with pytest.raises(UserError, match=r"energy\.node"):
            load_config(path)


def test_in_other_peoples_code(gpus, tmp_path):
    gpus.add(Power("const", 600.0))
    with measure("own", tmp_path, cpu="off", node={"command": STREAM}, quiet=True) as own:
        time.sleep(1.2)
    assert [c.component for c in own.record.energy.components if c.component == "node"] == ["node"]
    assert own.record.energy.node_explained == pytest.approx(2 / 3, rel=0.05)
