"""The JSON schema that editors complete and check a configuration with."""

import json

import jsonschema
import pytest
import yaml

from distill_energy.config.describe import json_schema


def test_file_is_in_step_with_the_models(repo):
    assert json.loads((repo / "configs" / "schema.json").read_text(encoding="utf-8")) == json_schema(), (
        "run: distill-energy schema > configs/schema.json"
    )


@pytest.mark.parametrize("name", ["config.yaml", *(f"configs/{n}.yaml" for n in ("smoke", "olmo2", "alternatives"))])
def test_shipped_configurations_are_valid(repo, name):
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load((repo / name).read_text(encoding="utf-8")), schema)


def test_a_typo_is_not(repo):
    data = yaml.safe_load((repo / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    data["trainning"] = data.pop("training")
    with pytest.raises(jsonschema.ValidationError, match=r"trainning|training"):
        jsonschema.validate(data, json_schema())
