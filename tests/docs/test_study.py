"""The study that the README prints is a configuration as it stands, beside the embedded default."""

import re
from pathlib import Path

from distill_energy.config import load_config, parse_config
from distill_energy.config.load import read_yaml
from distill_energy.plan import build_plan

REPO = Path(__file__).resolve().parents[2]


def printed(tmp_path) -> dict:
    (block,) = re.findall(r"```yaml\n(.*?)```", (REPO / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "printed.yaml").write_text(block)
    return read_yaml(tmp_path / "printed.yaml")


def test_it_validates_and_its_further_student_needs_no_teacher_job(tmp_path):
    data, study = read_yaml(REPO / "config.yaml"), printed(tmp_path)
    before = build_plan(load_config(REPO / "config.yaml"))
    for section in ("models", "datasets", "pipelines"):
        parse_config({**data, section: {**data[section], **study[section]}})
    assert set(data["students"]) < set(study["students"])
    grown = {**data, "models": {**data["models"], **study["models"]}, "students": study["students"]}
    after = build_plan(parse_config(grown))
    new = {key[0] for key in set(after.nodes) - set(before.nodes)}
    assert new == {"student_training", "evaluation"}


def test_the_readme_is_short_and_begins_with_question_picture_answer_and_commands():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    question, picture, command = text.index("?**"), text.index("!["), text.index("make pareto")
    assert question < picture < command < text.index("## ")
    assert (REPO / re.search(r"!\[.*?\]\((.*?)\)", text)[1]).is_file()
