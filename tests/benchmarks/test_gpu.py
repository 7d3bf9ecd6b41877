"""The GPU's benchmark, whole, on tiny shapes and a CPU: it is run rarely, and must then run."""

import json
import subprocess
import sys


def test_every_case_runs(repo, tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--size", "tiny", "--teachers", "tiny", "--out", str(out)]
    cases = ["--cases", "sft", "kd", "lora", "(a)", "(c)", "--steps", "1", "--turns", "1"]
    done = subprocess.run([*command, *cases], cwd=repo, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    rows = {**found["training"], **found["teacher"]["tiny"]}
    assert {"sft", "kd", "lora", "(a) plain loop, full logits", "(c) harness's formula", "cache"} <= set(rows)
    assert not [name for name, row in rows.items() if "error" in row], rows
    assert all(row["tokens_per_s"] > 0 and row["flop_per_s"] > 0 for row in rows.values())
    assert "| sft |" in done.stdout and "kd / sft" in done.stdout
