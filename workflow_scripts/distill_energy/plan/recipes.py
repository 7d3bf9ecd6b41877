"""The recipe number of each stage: raised by hand when what the stage's code makes changes its meaning.

A recipe is part of every version, so raising it makes the stage's artifacts, and all that was made from them, anew.
"""

from __future__ import annotations

RECIPES = {
    "prerun": 1,
    "preprocess_model": 1,
    "preprocess_data": 2,
    "teacher_logits": 2,
    "teacher_generation": 1,
    "reference_logprobs": 1,
    "student_training": 1,
    "contamination": 1,
    "quantised": 1,
    "evaluation": 1,
}
