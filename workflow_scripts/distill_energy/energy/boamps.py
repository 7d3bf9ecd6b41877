"""A sidecar as a BoAmps report (Boavizta's format for the energy of AI tasks), through CodeCarbon's mapping."""

from __future__ import annotations

import math
import platform
import uuid
from typing import Any

from ..errors import UserError
from ..store.sidecar import Sidecar, wall_seconds
from .co2 import load_codecarbon

KWH = 3.6e6  # J
_NAMESPACE = uuid.UUID("5f2b9a52-3c1d-4a57-9d0e-6d9c1c8a4e11")  # the same sidecar gives the same report id
_TASK_STAGE = {
    "prerun": "calibration",
    "preprocess": "preprocessing",
    "teacher_logits": "inference",
    "teacher_generation": "datacreation",
    "reference_logprobs": "inference",
    "student_training": "finetuning",
    "contamination": "preprocessing",
    "evaluation": "inference",
    "command": "other",
}


def to_boamps(record: Sidecar) -> dict[str, Any]:
    """The report as a JSON-ready dict. Raises UserError if the energy is unknown: the format has no null for it."""
    if record.energy.gross_j is None:
        raise UserError(
            f"{record.stage}/{record.name}: no BoAmps report, the energy is unknown: {record.energy.reason}"
        )
    load_codecarbon()
    from codecarbon.output_methods.boamps.mapper import map_emissions_to_boamps
    from codecarbon.output_methods.boamps.models import BoAmpsHeader, BoAmpsMeasure

    report = map_emissions_to_boamps(
        _emissions(record),
        task=_task(record),
        header=BoAmpsHeader(report_status="final"),
        quality=_quality(record),
        environment_overrides=_environment(record),
    )
    # the mapping says "codecarbon"; the joules are ours, by these methods
    report.measures = [
        BoAmpsMeasure(
            measurement_method="distill-energy",
            version=str(record.schema_version),
            cpu_tracking_mode=_method(record, "cpu"),
            gpu_tracking_mode=_method(record, "gpu"),
            power_consumption=record.energy.gross_j / KWH,
            measurement_duration=wall_seconds(record.attempts) or 0.0,
            measurement_date_time=_date(record.attempts[0].start_utc),
        )
    ]
    if report.environment.country is None:
        report.environment = None  # the schema has no environment without a country
    return report.to_dict()


def _date(iso: str) -> str:
    return iso[:19].replace("T", " ")


def _method(record: Sidecar, component: str) -> str | None:
    methods = [c.method for c in record.energy.components if c.component == component and c.method]
    return "+".join(dict.fromkeys(methods)) or None


def _energy_kwh(record: Sidecar, component: str) -> float:
    parts = [c.gross_j for c in record.energy.components if c.component == component and c.in_total and c.gross_j]
    return math.fsum(parts) / KWH


def _emissions(record: Sidecar) -> Any:
    """CodeCarbon's record of a run, filled with our figures; what the mapping does not use is left empty."""
    from codecarbon.output_methods.emissions_data import EmissionsData

    wall, kwh = wall_seconds(record.attempts) or 0.0, record.energy.gross_j / KWH
    names = [gpu.name or "?" for gpu in record.hardware.gpus]
    grams = record.co2e.g or 0.0
    return EmissionsData(
        timestamp=_date(record.created_utc),
        project_name="distill-energy",
        run_id=str(uuid.uuid5(_NAMESPACE, f"{record.stage}/{record.name}/{record.version}")),
        experiment_id="",
        duration=wall,
        emissions=grams / 1000,
        emissions_rate=grams / 1000 / wall if wall else 0.0,
        cpu_power=0.0,
        gpu_power=0.0,
        ram_power=0.0,
        cpu_energy=_energy_kwh(record, "cpu"),
        gpu_energy=_energy_kwh(record, "gpu"),
        ram_energy=_energy_kwh(record, "dram"),
        energy_consumed=kwh,
        water_consumed=0.0,
        country_name=(record.co2e.region or "").split("/")[0] or None,
        country_iso_code=(record.co2e.region or "").split("/")[0] or None,
        region=None,
        cloud_provider="",
        cloud_region="",
        os=platform.platform(),
        python_version=record.software.python,
        codecarbon_version=record.software.packages.get("codecarbon", ""),
        cpu_count=record.hardware.cores or 1,
        cpu_model=record.hardware.cpu,
        gpu_count=len(names),
        gpu_model=", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)),
        longitude=None,
        latitude=None,
        ram_total_size=round((record.hardware.ram_bytes or 0) / 1024**3),
        tracking_mode="process",
        pue=record.co2e.pue or 1.0,
    )


def _environment(record: Sidecar) -> dict[str, Any]:
    intensity = record.co2e.intensity_g_per_kwh
    return {} if intensity is None else {"power_source_carbon_intensity": intensity}


def _quality(record: Sidecar) -> str:
    """BoAmps' words: high is within ±10%, medium ±25%, low ±50%."""
    if record.energy.source == "estimated" or "disputed" in record.quality.flags:
        return "low"
    return "medium" if record.quality.flags or (record.quality.coverage or 0) < 0.95 else "high"


def _task(record: Sidecar) -> Any:
    from codecarbon.output_methods.boamps.models import BoAmpsAlgorithm, BoAmpsDataset, BoAmpsTask

    labels, params = record.labels, record.params
    training = params.get("training") or {}
    tokens = record.tokens
    counted = tokens.processed if tokens.processed is not None else tokens.generated
    return BoAmpsTask(
        task_stage=_TASK_STAGE[record.stage],
        task_family="textGeneration" if record.stage != "command" else "other",
        algorithms=[
            BoAmpsAlgorithm(
                training_type="supervisedLearning" if record.stage == "student_training" else None,
                algorithm_type="llm" if record.stage != "command" else "other",
                algorithm_name=_text(labels.get("student") or labels.get("model") or record.name),
                foundation_model_name=_text(labels.get("teacher")),
                framework="pytorch" if "torch" in record.software.packages else None,
                framework_version=record.software.packages.get("torch"),
                optimizer=_text(training.get("optimizer")) if isinstance(training, dict) else None,
            )
        ],
        dataset=[
            BoAmpsDataset(
                data_usage="input",
                data_type="token",
                data_quantity=float(counted) if counted is not None else None,
            )
        ],
        task_description=", ".join(
            [f"{record.stage} {record.name} {record.version}"]
            + [f"{key} {labels[key]}" for key in ("pipeline", "dataset") if labels.get(key)]
        ),
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
