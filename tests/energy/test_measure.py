"""The meter in other people's code: decorator, context manager, Trainer callbacks, commands."""

import json
import subprocess
import sys
import time

import pytest

from distill_energy import measure
from distill_energy.energy.command import REDACTED, redacted
from distill_energy.errors import UserError
from distill_energy.store import sidecar as schema

from .fakes import Power


def test_context_manager_measures_and_writes_a_sidecar(gpus, tmp_path, capfd):
    gpus.add(Power("const", 300.0))
    with measure("part", tmp_path, interval_s=0.05, cpu="off") as m:
        time.sleep(0.3)
        with m.phase("inside") as phase:
            time.sleep(0.3)
        assert 50 < m.joules() < 400
        m.add_tokens("processed", 100)
    assert m.energy_j == pytest.approx(300 * m.seconds, rel=0.05) and m.source == "measured" and m.reason is None
    assert phase.joules == pytest.approx(90, rel=0.3)
    (path,) = tmp_path.glob("command/part/*/energy.json")
    record = schema.read(path)
    assert record.j_per_token.value == pytest.approx(m.energy_j / 100)
    assert path.stat().st_mode & 0o077 == 0
    said = capfd.readouterr().err
    assert said.startswith(f"part: {m.energy_j:.1f} J (measured) in ") and str(path) in said


def test_decorator_measures_each_call(gpus, tmp_path, capfd):
    gpus.add(Power("const", 300.0))

    @measure("twice", tmp_path, interval_s=0.05, cpu="off")
    def work(x):
        """Doc."""
        time.sleep(0.2)
        return x + 1

    assert (work(1), work(2)) == (2, 3) and work.__doc__ == "Doc."
    assert len(list(tmp_path.glob("command/twice/*/energy.json"))) == 2
    assert capfd.readouterr().err.count("twice: ") == 2


def test_exception_passes_and_its_joules_are_wasted(gpus, tmp_path):
    gpus.add(Power("const", 300.0))
    with pytest.raises(KeyError), measure("fails", tmp_path, interval_s=0.05, cpu="off", quiet=True) as m:
        time.sleep(0.2)
        raise KeyError("no")
    assert m.record.energy.wasted_gross_j == m.energy_j > 0
    assert m.record.attempts[0].outcome == "failed"


def test_nothing_is_left_behind_without_a_folder(gpus, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gpus.add(Power("const", 300.0))
    with measure(out=None, interval_s=0.05, cpu="off", quiet=True) as m:
        time.sleep(0.1)
    assert m.energy_j > 0 and not list(tmp_path.glob("distill-energy-*"))


def test_bad_name_is_refused_before_anything(tmp_path):
    with pytest.raises(UserError, match="name"), measure("../x", tmp_path):
        pass
    assert not list(tmp_path.rglob("*"))


def test_the_entry_is_light():
    """What a user's program pays for the import, told by what is loaded and not by a clock."""
    code = (
        "import sys; before = set(sys.modules); from distill_energy import measure; print(*set(sys.modules) - before)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "transformers", "pandas", "numpy", "pyarrow", "pydantic", "codecarbon", "scipy"}
    assert not heavy & {name.partition(".")[0] for name in loaded}
    assert len(loaded) < 40


def test_the_entry_is_imported_within_50_ms():
    """The least of several, so that a busy machine does not count; the interpreter's own start is not in it."""
    code = "import time; t = time.perf_counter(); from distill_energy import measure; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(7)]
    assert min(float(run.stdout) for run in runs) < 0.05


def test_a_command_loads_no_pandas(tmp_path):
    """Arrow would, for tables that a command has not."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "distill_energy", "energy", "run", "--cpu", "off", "--out", tmp_path,
         "--", "true"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "distill_energy.energy.meter" in loaded
    assert not {"pandas.core", "torch", "transformers", "distill_energy.config.schema"} & loaded


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["curl", "--api-key", "abc", "x"], ["curl", "--api-key", REDACTED, "x"]),
        (["a", "--token=abc"], ["a", f"--token={REDACTED}"]),
        (["env", "HF_TOKEN=abc", "python"], ["env", f"HF_TOKEN={REDACTED}", "python"]),
        (["a", "hf_abcdefghijkl"], ["a", REDACTED]),
        (["git", "clone", "https://me:pass@host/x"], ["git", "clone", f"https://me:{REDACTED}@host/x"]),
        (["curl", "-H", "Authorization: Bearer abc"], ["curl", "-H", f"Authorization: Bearer {REDACTED}"]),
        (["a", "--tokenizer", "x", "--max-tokens=5"], ["a", "--tokenizer", "x", "--max-tokens=5"]),
        (["python", "train.py", "--lr", "1e-3"], ["python", "train.py", "--lr", "1e-3"]),
    ],
)
def test_secrets_of_a_command_line_are_not_kept(argv, shown):
    assert redacted(argv) == shown


def test_secrets_are_in_no_file(tmp_path):
    """The journal holds what the sidecar does."""
    subprocess.run(
        [sys.executable, "-m", "distill_energy", "energy", "run", "--cpu", "off", "--out", tmp_path, "--", "true",
         "--password", "swordfish"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"swordfish" in p.read_bytes()]


def test_secrets_of_a_measured_program_are_in_no_file(gpus, tmp_path, monkeypatch):
    """Its own command line is recorded as a measured command's is."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--api-key", "swordfish"])
    gpus.add(Power("const", 300.0))
    with measure("secretive", tmp_path, interval_s=0.05, cpu="off", quiet=True) as m:
        time.sleep(0.1)
    assert m.record.params["argv"] == ["train.py", "--api-key", REDACTED]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"swordfish" in p.read_bytes()]


def test_transformers_trainer(gpus, tmp_path):
    """joules a step in the Trainer's own log, and a sidecar at the end."""
    import torch
    from transformers import LlamaForCausalLM, Trainer, TrainingArguments

    from distill_energy import EnergyCallback
    from distill_energy.models.tiny import tiny_config

    gpus.add(Power("const", 300.0))
    torch.manual_seed(0)
    rows = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(8)]
    callback = EnergyCallback("tune", tmp_path / "results", interval_s=0.05, cpu="off", quiet=True)
    trainer = Trainer(
        LlamaForCausalLM(tiny_config({"layers": 1})),
        TrainingArguments(
            tmp_path / "out", max_steps=4, logging_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            save_strategy="no", disable_tqdm=True, include_num_input_tokens_seen="all",
        ),
        train_dataset=rows,
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4 and all(entry["energy_j"] >= 0 for entry in logs)  # as of the last tick
    assert all(entry["energy_j_per_step"] >= 0 for entry in logs)
    record = callback.measurement.record
    assert record.energy.gross_j >= logs[-1]["energy_j"] and record.tokens.processed == 64
    assert json.loads(next((tmp_path / "results").glob("command/tune/*/energy.json")).read_text())["stage"] == "command"


def test_lightning_trainer(gpus, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    import torch

    from distill_energy import LightningEnergyCallback

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, index):
            time.sleep(0.1)  # some ticks of the meter
            return self.layer(batch).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    gpus.add(Power("const", 300.0))
    callback = LightningEnergyCallback("fit", tmp_path, interval_s=0.05, cpu="off", quiet=True)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[callback],
    )  # fmt: skip
    trainer.fit(Model(), torch.utils.data.DataLoader(torch.randn(6, 4), batch_size=2))
    assert trainer.callback_metrics["energy_j"] > 0
    assert callback.measurement.energy_j >= float(trainer.callback_metrics["energy_j"])
