"""Finding devices: visible GPUs, RAPL zones."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from distill_energy.energy import MeterConfig, account, resolve_visible_gpus
from distill_energy.energy.sensors import rapl
from distill_energy.energy.sensors.devices import RaplZone
from distill_energy.energy.sensors.visible import GpuEntry, narrowed
from distill_energy.errors import UserError

from .fakes import FakePowercap

UUIDS = ["GPU-aaaa1111-0", "GPU-aaaa2222-0", "GPU-bbbb3333-0", "GPU-cccc4444-0"]
SAME = [GpuEntry(uuid, name="H100", handle=i) for i, uuid in enumerate(UUIDS)]
MIXED = [GpuEntry(uuid, name=f"model {i}", handle=i) for i, uuid in enumerate(UUIDS)]
MIG = [
    GpuEntry(UUIDS[0], name="H100", migs=("MIG-11111111-1", "MIG-22222222-2"), handle=0),
    GpuEntry(UUIDS[1], name="H100", handle=1),
]


def seen(value, inventory=SAME, **env):
    if value is not None:
        env["CUDA_VISIBLE_DEVICES"] = value
    return [gpu.uuid for gpu in resolve_visible_gpus(env, inventory).gpus]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, UUIDS),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", UUIDS[:1]),
        ("2,0", [UUIDS[2], UUIDS[0]]),
        (" 1 , 3 ", [UUIDS[1], UUIDS[3]]),
        ("0,-1,2", UUIDS[:1]),
        ("1,9,2", UUIDS[1:2]),
        ("9", []),
        ("0,0", []),
        ("GPU-bbbb3333-0", [UUIDS[2]]),
        ("GPU-b", [UUIDS[2]]),
        ("GPU-aaaa", []),
        ("GPU-cccc,GPU-aaaa1", [UUIDS[3], UUIDS[0]]),
        ("GPU-zzzz,0", []),
        ("gpu0", []),
    ],
)
def test_cuda_visible_devices(value, expected):
    assert seen(value) == expected


def test_nothing_visible_says_why():
    assert "is empty" in resolve_visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, SAME).reason
    assert "repeated" in resolve_visible_gpus({"CUDA_VISIBLE_DEVICES": "0,0"}, SAME).reason
    assert resolve_visible_gpus({}, []).reason == "no NVIDIA GPU"


def test_index_on_different_gpus_needs_pci_order():
    with pytest.raises(UserError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        seen("1", MIXED)
    assert seen("1", MIXED, CUDA_DEVICE_ORDER="PCI_BUS_ID") == [UUIDS[1]]
    assert seen("GPU-bbbb", MIXED) == [UUIDS[2]], "a UUID needs no order"
    assert seen(None, MIXED) == UUIDS


def test_cgroup_renumbers_what_is_accessible():
    """SLURM with ConstrainDevices: the job got physical GPUs 2 and 3, CUDA_VISIBLE_DEVICES counts them from 0."""
    inside = [GpuEntry(uuid, name="H100", accessible=i >= 2, handle=i) for i, uuid in enumerate(UUIDS)]
    assert seen("0", inside) == [UUIDS[2]]
    assert seen("0,1", inside) == UUIDS[2:]
    assert seen(None, inside) == UUIDS[2:]
    assert seen("2", inside) == []


@pytest.mark.parametrize(
    ("value", "gpu", "mig"),
    [
        ("MIG-22222222-2", UUIDS[0], "MIG-22222222-2"),
        ("MIG-111", UUIDS[0], "MIG-11111111-1"),
        (f"MIG-{UUIDS[0]}/7/0", UUIDS[0], f"MIG-{UUIDS[0]}/7/0"),
        ("0", UUIDS[0], "MIG-11111111-1"),
    ],
)
def test_mig_resolves_to_its_parent(value, gpu, mig):
    (found,) = resolve_visible_gpus({"CUDA_VISIBLE_DEVICES": value}, MIG).gpus
    assert (found.uuid, found.mig) == (gpu, mig)


# -- RAPL zones


def test_zones_that_count(powercap):
    powercap.zone("intel-rapl:0", "package-0")
    powercap.zone("intel-rapl:0/intel-rapl:0:0", "core")
    powercap.zone("intel-rapl:0/intel-rapl:0:1", "dram")
    powercap.zone("intel-rapl:1", "package-1")
    powercap.zone("intel-rapl:1/intel-rapl:1:0", "dram")
    powercap.zone("intel-rapl:2", "psys")
    powercap.zone("intel-rapl-mmio:0", "package-0")
    powercap.zone("dtpm", "dtpm")
    zones = rapl.discover(powercap.root)
    assert [(zone.name, zone.component) for zone in zones] == [
        ("package-0", "cpu"),
        ("package-0/dram", "dram"),
        ("package-1", "cpu"),
        ("package-1/dram", "dram"),
    ]
    assert zones[0].path.name == "intel-rapl:0", "the MSR interface goes first"


def test_zones_through_class_links(powercap):
    """/sys/class/powercap shows subzones as links beside their zone."""
    powercap.zone("intel-rapl:0", "package-0")
    powercap.zone("intel-rapl:0:0", "dram")
    assert [zone.name for zone in rapl.discover(powercap.root)] == ["package-0", "package-0/dram"]


def test_no_rapl_at_all(tmp_path):
    assert rapl.discover(tmp_path / "absent") == []


def test_unreadable_zone_names_the_remedy():
    """As on every kernel since 5.10: energy_uj belongs to root. Read by a child that is not root."""
    with tempfile.TemporaryDirectory() as name:
        root = FakePowercap(Path(name))
        path = root.zone("intel-rapl:0", "package-0")
        (path / "energy_uj").chmod(0o000)
        Path(name).chmod(0o755)
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            if os.geteuid() == 0:
                os.setuid(65534)
            os.write(into, str([zone.error for zone in rapl.discover(root.root)]).encode())
            os._exit(0)
        os.waitpid(child, 0)
        said = os.read(out, 4096).decode()
    assert "permission denied" in said and "chmod a+r" in said


def test_unreadable_file_is_reported(powercap):
    path = powercap.zone("intel-rapl:0", "package-0")
    (path / "energy_uj").unlink()
    (zone,) = rapl.discover(powercap.root)
    assert "energy_uj" in zone.error


def test_two_sockets_wrap_each_at_its_own_time(powercap):
    """FINDINGS: two sockets summed before the wrap is corrected turn 300 kJ into 37.9 kJ. Exact to 1 µJ here."""
    span, truth = 262_143_328_850, [0, 0]
    first = [span - 5_000_000, 123_456_789]
    paths = [powercap.zone(f"intel-rapl:{i}", f"package-{i}", value=first[i], limit_w=1000) for i in range(2)]
    readers = [RaplZone(zone) for zone in rapl.discover(powercap.root)]
    series = [[], []]
    for beat in range(400):
        for i, path in enumerate(paths):
            (path / "energy_uj").write_text(str((first[i] + truth[i]) % span))
            series[i].append((0.5 * beat, readers[i].sample()[0], None))
        if beat < 399:
            truth[0] += 749_999_999 + beat % 3
            truth[1] += 880_000_001
    for i in range(2):
        energy = account.rapl_energy(series[i], 0.5, span, readers[i].zone.limit_w)
        assert energy.gross_j == pytest.approx(truth[i] * 1e-6, abs=1e-6, rel=0)
        assert truth[i] > span, "the test must wrap"


@pytest.mark.parametrize(
    ("key", "value"), [("interval_s", 0.0), ("jitter", 2.0), ("cpu", "magic"), ("interval_s", 1e9)]
)
def test_bad_settings_name_the_key(key, value):
    with pytest.raises(UserError, match=key):
        MeterConfig(**{key: value})


@pytest.mark.parametrize(
    ("value", "inventory", "count", "expected"),
    [
        (None, SAME, 1, ("0", 4)),
        (None, SAME, 4, None),
        (None, MIXED, 2, (f"{UUIDS[0]},{UUIDS[1]}", 4)),  # CUDA may count them otherwise
        (None, MIG, 1, ("MIG-11111111-1", 2)),
        ("2, 3,1", SAME, 2, ("2,3", 3)),
        ("GPU-cccc,GPU-bbbb", SAME, 1, ("GPU-cccc", 2)),
        ("", SAME, 1, None),
        (None, [], 1, None),
    ],
)
def test_a_stage_that_uses_fewer(value, inventory, count, expected):
    env = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    found = narrowed(env, inventory, count)
    assert found == expected
    if found:
        all_of_them, first = (
            resolve_visible_gpus({**env, **more}, inventory).gpus for more in ({}, {"CUDA_VISIBLE_DEVICES": found[0]})
        )
        assert first == all_of_them[:count]
