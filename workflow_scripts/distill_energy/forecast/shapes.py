"""From a configured model to its shape with random weights. Loads torch: for the process that measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ..errors import UserError
from ..models.pruned import prune
from ..models.shaped import config_of
from ..models.sources import bare_model


def shaped(model: dict[str, Any], inputs: dict[str, Path]) -> dict[str, Any]:
    """The specification ``{"source": "shaped", "config": …}`` of a model: as its ``shape`` states, else as its
    config.json says. Raises UserError where neither does."""
    if model["source"] == "pruned":
        of = shaped(model["of"], inputs)
        with torch.device("meta"):
            bare = AutoModelForCausalLM.from_config(config_of(of["config"]))
            config = prune(bare, model["layers"], model.get("keep", "ends")).config
    elif model.get("shape"):
        config = config_of(model["shape"])
    else:
        try:
            config = bare_model(model, inputs).config
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            why = " ".join(str(error).split())[:160]
            raise UserError(f"its shape is not known here ({why}); state it: models.NAME.shape") from None
    return {"source": "shaped", "config": config.to_dict()}
