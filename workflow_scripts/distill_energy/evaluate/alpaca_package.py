"""AlpacaEval 2 by its own package (alpaca_eval, in an environment of its own: envs/requirements-evaluation.txt).

Its annotator asks the configured judge with the leaderboard's prompt. The leaderboard's length-controlled rate is
computed only for what it was fitted on, its own judge and its 805 prompts; the hub has its table of difficulties.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ..errors import UserError
from .judges import Endpoint

PROMPT_VERSION = "alpaca_eval"  # the judge's prompt_version that asks for the package
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
OFFICIAL_JUDGE, OFFICIAL_PROMPTS = "gpt-4-1106-preview", 805


def annotate(
    judge: Endpoint, shown: Sequence[tuple[str, str, str]], seed: int, folder: Path
) -> tuple[list[float], str, float | None]:
    """(score of each item, note, length-controlled rate or None) for (instruction, answer, reference) triples.

    A score is the judge's preference for the answer, or the length-controlled preference where that rate is official.
    Raises UserError if the package is absent, RuntimeError if the judge's replies cannot be read.
    """
    try:
        from alpaca_eval import metrics
        from alpaca_eval.annotators import PairwiseAnnotator
    except ImportError as error:
        raise UserError(
            f"evaluation: judge.prompt_version {PROMPT_VERSION!r} needs the package alpaca_eval "
            f"(envs/requirements-evaluation.txt): {error}"
        ) from None

    client = folder / "client.yaml"
    try:
        config = write_config(judge, folder, client)
        annotator = PairwiseAnnotator(annotators_config=config, caching_path=None, seed=seed)
        found = annotator.annotate_head2head(
            outputs_1=pd.DataFrame([{"instruction": i, "output": r, "generator": "reference"} for i, _, r in shown]),
            outputs_2=pd.DataFrame([{"instruction": i, "output": a, "generator": "model"} for i, a, _ in shown]),
        )
    finally:
        client.unlink(missing_ok=True)
    judge.usage["requests"] += len(found)
    by_instruction = {row["instruction"]: row for row in found}
    unread = [i for i, _, _ in shown if _unknown(by_instruction.get(i, {}).get("preference"))]
    if unread:
        raise RuntimeError(f"judge {judge.model}: {len(unread)} of {len(shown)} pairs have no readable preference")
    rows = pd.DataFrame([by_instruction[i] for i, _, _ in shown])
    note = f"alpaca_eval {_version()}, its prompt, judge {judge.model}"
    if judge.model == OFFICIAL_JUDGE and len(shown) == OFFICIAL_PROMPTS:
        result = metrics.get_length_controlled_winrate(rows, save_weights_dir=None)
        return rows["glm_preference"].tolist(), note, result["length_controlled_winrate"] / 100
    # 1: the reference's answer, 2: the model's, and what lies between.
    return [float(p) - 1.0 for p in rows["preference"]], f"{note}: not the leaderboard's length-controlled rate", None


def _unknown(preference: Any) -> bool:
    return preference is None or preference != preference


def _version() -> str:
    return version("alpaca_eval")


def write_config(judge: Endpoint, folder: Path, client: Path) -> str:
    """The package's annotator with our judge's name and address; the folder of its configuration."""
    import alpaca_eval

    configs = Path(alpaca_eval.__file__).parent / "evaluators_configs"
    whole = yaml.safe_load((configs / ANNOTATOR / "configs.yaml").read_text(encoding="utf-8"))[ANNOTATOR]
    # The key lies in a file that only this user reads, for as long as the judge is asked.
    descriptor = os.open(client, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        base = judge.url.removesuffix("/chat/completions")
        yaml.safe_dump({"default": [{"api_key": judge.key or "none", "base_url": base}]}, handle)
    whole["prompt_template"] = str(configs / whole["prompt_template"])
    whole["completions_kwargs"] |= {
        "model_name": judge.model,
        "client_config_path": str(client),
        "requires_chatml": True,
        "price_per_token": 0.0,
    }
    target = folder / "judge"
    target.mkdir(exist_ok=True)
    (target / "configs.yaml").write_text(yaml.safe_dump({"judge": whole}), encoding="utf-8")
    return str(target)
