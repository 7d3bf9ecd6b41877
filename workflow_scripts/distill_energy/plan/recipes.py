"""The recipe number of each stage, from the module that does its work (imports nothing heavy)."""

from __future__ import annotations

from importlib import import_module

MODULES = {
    "prerun": "distill_energy.prerun",
    "preprocess_model": "distill_energy.models.stage",
    "preprocess_data": "distill_energy.data.stage",
    "teacher_logits": "distill_energy.teacher.logits",
    "teacher_generation": "distill_energy.teacher.generation",
    "student_training": "distill_energy.train.stage",
    "evaluation": "distill_energy.evaluate.stage",
}


def recipe(work: str) -> int:
    """``RECIPE`` of the module behind ``work`` (a key of ``MODULES``)."""
    return int(import_module(MODULES[work]).RECIPE)
