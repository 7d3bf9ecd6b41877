"""Rates, a forecast from them, then the study: which stages lie in their interval, and how far the total is off.

    python benchmarks/rates.py [--config config.yaml] [--minutes 8] [--folder DIR] [--json FILE]

Everything runs in a folder of its own (a new temporary one by default); the study's words go to study.log there. Ends
with 1 unless every stage lies in its 90 % interval and the total within 10 %. A busy machine makes both sides noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "workflow_scripts"))

from distill_energy.answer.aggregate import read_ledger  # noqa: E402
from distill_energy.config.load import load_config  # noqa: E402
from distill_energy.forecast.forecast import plan_forecast  # noqa: E402
from distill_energy.forecast.rates import Rates, measure, read_rates, write_rates  # noqa: E402

WITHIN = 0.1  # of the measured total


def main() -> int:
    """Measure, forecast, run, compare. The exit status: 0 if the forecast was right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=REPO / "config.yaml")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--folder", type=Path, help="where the study runs; a folder that has one goes on")
    parser.add_argument("--json", type=Path, help="write the table there")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="rates-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config, load = load_config(options.config), os.getloadavg()[0]

    begin = time.monotonic()
    if not (folder / "rates.parquet").is_file():
        write_rates(folder / "rates.parquet", measure(config, options.minutes, " ".join(sys.argv)))
    rates = Rates(read_rates(folder / "rates.parquet"), "rates")
    shares = {(r["stage"], r["model"], r["pipeline"]): json.loads(r["facts"] or "{}") for r in rates.rows}
    busy = [facts.get("neighbours") or 0.0 for facts in shares.values()]
    print(f"others kept {max(busy):.0%} of the processors busy at most, {sum(busy) / len(busy):.0%} on average")
    print(f"rates in {time.monotonic() - begin:.0f} s, load average {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    before = plan_forecast(config, folder / "nothing yet", rates=rates)
    print(f"forecast: {before.basis}")

    begin = time.monotonic()
    command = [Path(sys.executable).with_name("snakemake"), "--cores", "all", "results/ledger.parquet"]
    command += ["--quiet", "all", "--snakefile", REPO / "Snakefile", "--directory", folder]
    command += ["--configfile", options.config.resolve()]
    print(f"the study runs, its words in {folder / 'study.log'}", flush=True)
    with open(folder / "study.log", "ab") as log:
        done = subprocess.run(list(map(str, command)), stdout=log, stderr=log, check=False)
    if done.returncode:
        print(f"the study ended with {done.returncode}: {folder / 'study.log'}", file=sys.stderr)
        return 2
    print(f"study in {time.monotonic() - begin:.0f} s, load average {os.getloadavg()[0]:.1f} after")

    rows = read_ledger(folder / "results" / "ledger.parquet")[0]
    after = plan_forecast(config, folder / "nothing yet", rates=rates, done=rows)
    table = []
    print(f"\n{'stage':20} {'forecast Wh':>12} {'90 %':>20} {'measured Wh':>12} {'error':>8}")
    for row in after.stages:
        real = row["measured_kwh"]
        low, likely, high = (1e3 * row[f"{end}_kwh"] for end in ("low", "likely", "high"))
        inside = None if real is None else low <= 1e3 * real <= high
        error = None if real is None else likely / (1e3 * real) - 1
        verdict = "not measured" if inside is None else f"{error:+7.1%} {'inside' if inside else 'OUTSIDE'}"
        shown = "–" if real is None else f"{1e3 * real:.4f}"
        print(f"{row['stage']:20} {likely:12.4f} {low:9.4f} to {high:7.4f} {shown:>12} {verdict}")
        table.append({"stage": row["stage"], "low_wh": low, "likely_wh": likely, "high_wh": high, "inside": inside})
        table[-1] |= {"measured_wh": None if real is None else 1e3 * real, "error": error}
    if options.json:
        told = {"stages": table, "executions": after.executions}
        options.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    wrong = [row["stage"] for row in table if not row["inside"]]
    error = table[-1]["error"]
    close = error is not None and abs(error) <= WITHIN
    total = "is not known" if error is None else f"is {error:+.1%}, {'' if close else 'not '}within {WITHIN:.0%}"
    said = f"outside: {', '.join(wrong)}" if wrong else "every stage is inside"
    print(f"\nverdict: {said}; the total {total}")
    return 0 if close and not wrong else 1


if __name__ == "__main__":
    raise SystemExit(main())
