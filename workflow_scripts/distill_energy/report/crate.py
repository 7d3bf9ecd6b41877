"""``distill-energy crate results/``: a finished study as a Workflow Run RO-Crate, by the library rocrate.

Profiles: Process Run Crate and Workflow Run Crate 0.5 over RO-Crate 1.1 (https://w3id.org/ro/wfrun/workflow/0.5). The
crate holds the workflow, its configuration, the answer, and the record of every execution; models and caches stay where
they are, and the records name them by their hash.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..answer.aggregate import answer, reopened
from ..answer.experiments import FOLDER
from ..config.load import load_config
from ..errors import UserError
from ..ledger.rows import counts
from ..store.sidecar import SIDECAR_NAME
from .page import CITE
from .sentences import lead

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
}
WORKFLOW_PROFILE = ("https://w3id.org/workflowhub/workflow-ro-crate/1.0", "Workflow RO-Crate", "1.0")
CONTEXT = "https://w3id.org/ro/terms/workflow-run/context"
LICENSE = "https://spdx.org/licenses/Apache-2.0"
JOULE = "http://qudt.org/vocab/unit/J"
#: What of an answer's folder belongs into the crate.
ANSWER = ("*.csv", "*.parquet", "*.pdf", "*.svg", "report.html", "measured/*")
#: Stage → the script of its rule; a preprocess stage's is told by its name.
SCRIPTS = {"preprocess": "preprocess_data"}
SOURCES = ("Snakefile", "rules", "workflow_scripts", "envs", "profiles")


def main(arguments: Sequence[str]) -> int:
    """Write the crate; a wrong folder or a missing library is one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="distill-energy crate", description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, help="a finished study's results folder")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="the study's configuration")
    parser.add_argument("--workflow", type=Path, default=Path("."), help="the folder with the Snakefile")
    parser.add_argument("--out", type=Path, help="folder, or .zip, to write (default: RESULTS/crate.zip)")
    options = parser.parse_args(arguments)
    try:
        out = options.out or options.results / "crate.zip"
        count = write(options.results, out, options.config, options.workflow)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {count} executions as a Workflow Run RO-Crate")
    return 0


def write(results: Path, out: Path, config: Path, workflow: Path) -> int:
    """Write a finished study as a crate and return the number of its executions.

    ``out``: a folder that does not exist, or a file that ends with .zip. Raises UserError for what is missing.
    """
    try:
        from rocrate.rocrate import ROCrate
    except ImportError:
        raise UserError("the package rocrate is not installed: pip install 'distill-energy[crate]'") from None
    if out.exists():
        raise UserError(f"{out}: is there already")
    if not (workflow / "Snakefile").is_file():
        raise UserError(f"{workflow}: holds no Snakefile (name the workflow's folder with --workflow)")
    settings = load_config(config)
    if settings.experiment and results.parent.name != FOLDER:
        results = results / FOLDER / settings.experiment
    if not (results / "ledger.parquet").is_file():
        raise UserError(f"{results}: holds no ledger.parquet: the study is not finished")
    roots, used = reopened([results])
    rows, summary, _ = answer(roots, **used)
    done = [row for row in rows if counts(row)]
    if not done:
        raise UserError(f"{results}: no execution is recorded")
    crate = ROCrate(version="1.1")
    crate.metadata.extra_contexts.append(CONTEXT)
    described(crate, rows, summary)
    main_file = workflow_of(crate, workflow, done)
    given = crate.add_file(
        config, "config.yaml", properties={"name": "Configuration", "encodingFormat": "application/yaml"}
    )
    made = [
        crate.add_file(path, f"answer/{path.relative_to(results)}", properties={"name": path.name})
        for pattern in ANSWER
        for path in sorted(results.glob(pattern))
        if path.is_file()
    ]
    records = {
        f"{row['stage']}/{row['name']}/{row['version']}": crate.add_file(
            Path(row["path"]) / SIDECAR_NAME,
            f"records/{row['stage']}/{row['name']}/{row['version']}/{SIDECAR_NAME}",
            properties={"name": f"Record of {row['stage']} {row['name']}", "encodingFormat": "application/json"},
        )
        for row in done
        if (Path(row["path"]) / SIDECAR_NAME).is_file()
    }
    times = [row["started_utc"] for row in done if row["started_utc"]], [r["created_utc"] for r in done]
    run = crate.add_action(
        main_file,
        identifier="#run",
        object=[given],
        result=[*made, *records.values()],
        properties={
            "name": "The study",
            "startTime": min(times[0], default=None),
            "endTime": max((t for t in times[1] if t), default=None),
        },
    )
    run["agent"] = crate.root_dataset["author"]
    crate.root_dataset.append_to("mentions", run)
    for row in done:
        execution(crate, row, records, given)
    if out.suffix == ".zip":
        crate.write_zip(out)
    else:
        crate.write(out)
    return len(done)


def described(crate: Any, rows: Sequence[Mapping[str, Any]], summary: Sequence[Mapping[str, Any]]) -> None:
    """The root: what the study is, what it found, by which profiles it is described."""
    from rocrate.model.contextentity import ContextEntity

    root = crate.root_dataset
    crate.name = "What distillation costs: an energy study by distill-energy"
    crate.description = lead(summary) or f"{len(rows)} executions, of which none is compared."
    root["license"] = crate.add(
        ContextEntity(crate, LICENSE, {"@type": "CreativeWork", "name": "Apache License 2.0", "identifier": LICENSE})
    )
    root["author"] = crate.add(
        ContextEntity(crate, "#author", {"@type": "Organization", "name": "Whoever ran the study"})
    )
    cited = {"@type": "ScholarlyArticle", "name": CITE}
    root["citation"] = crate.add(ContextEntity(crate, "https://arxiv.org/abs/2605.13981", cited))
    profiles = {**PROFILES, WORKFLOW_PROFILE[0]: WORKFLOW_PROFILE[1:]}
    root["conformsTo"] = [
        crate.add(ContextEntity(crate, url, {"@type": "CreativeWork", "name": name, "version": version}))
        for url, (name, version) in profiles.items()
    ]


def workflow_of(crate: Any, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Any:
    """The Snakefile as the crate's main entity, and what it needs beside it."""
    commits = sorted({row["git_commit"] for row in rows if row["git_commit"]})
    snakefile = crate.add_workflow(
        folder / "Snakefile",
        "Snakefile",
        main=True,
        lang="snakemake",
        properties={
            "name": "distill-energy",
            "description": "Does distilling a language model save energy, once everything is counted?",
            **({"version": ", ".join(commits)} if commits else {}),
        },
    )
    snakefile["license"] = crate.root_dataset["license"]
    for name in SOURCES[1:]:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                crate.add_file(path, path.relative_to(folder).as_posix(), properties=_about(path, folder))
    return snakefile


def _about(path: Path, folder: Path) -> dict[str, Any]:
    """Properties of a source file; the rules' scripts are what executions name as their tool."""
    if path.suffix == ".py" and path.parent == folder / "workflow_scripts":
        return {"@type": ["File", "SoftwareSourceCode"], "name": f"The rule {path.stem.replace('_', ' ')}"}
    return {"name": path.name}


def execution(crate: Any, row: Mapping[str, Any], records: Mapping[str, Any], config: Any) -> None:
    """An execution as a CreateAction of its rule's script: from the records of what it read, to its own."""
    from rocrate.model.contextentity import ContextEntity

    key = f"{row['stage']}/{row['name']}/{row['version']}"
    if key not in records:
        return
    script = SCRIPTS.get(row["stage"], row["stage"])
    if row["stage"] == "preprocess" and row["name"].startswith("model-"):
        script = "preprocess_model"
    action = crate.add_action(
        crate.dereference(f"workflow_scripts/{script}.py") or crate.mainEntity,
        identifier=f"#{key}",
        object=[records[parent] for parent in row["consumes"] if parent in records] or [config],
        result=[records[key]],
        properties={
            "name": f"{row['stage'].replace('_', ' ')} {row['name']}",
            "startTime": row["started_utc"],
            "endTime": row["created_utc"],
            "actionStatus": "http://schema.org/CompletedActionStatus",
        },
    )
    action["agent"] = crate.root_dataset["author"]
    crate.root_dataset.append_to("mentions", action)
    if row["total_j"] is not None:
        action["resourceUsage"] = crate.add(
            ContextEntity(
                crate,
                f"#energy-{key}",
                {
                    "@type": "PropertyValue",
                    "name": "energy",
                    "propertyID": "https://w3id.org/distill-energy/energy",
                    "value": str(row["total_j"]),
                    "unitCode": JOULE,
                    "description": f"{row['source']}, all attempts",
                },
            )
        )
