"""transformers without its advice and progress bars."""

from __future__ import annotations

import logging
import os

import transformers


def quiet() -> None:
    """Keep transformers' advice and progress bars out of the job's log; its errors stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    logging.getLogger("torchao").setLevel(logging.ERROR)  # kernels for cards that are not here
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
