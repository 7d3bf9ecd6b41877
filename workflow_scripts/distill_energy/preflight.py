"""What can be known before anything is paid for: models, tokenizers, templates, data, memory, disk, judges.

Reads configurations, tokenizers and headers of files, no weights. All that is wrong is found at once, a line each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .config.evaluation import LOCAL_TASKS, Benchmark, Judge
from .config.params import read_params
from .config.schema import Config
from .config.sources import GeneratedData
from .data.chat import accepted, check_tokenizer, encode_turns
from .data.formats import Filtered, Refused, read
from .data.hub import read_rows
from .errors import UserError
from .evaluate.harness_tasks import manager_of
from .evaluate.judges import Endpoint
from .evaluate.reference import conversations
from .forecast.forecast import plan_forecast
from .forecast.memory import training_bytes, weight_bytes
from .kd.cache.checks import check_vocabulary
from .ledger.carbon import read_series
from .models.fingerprint import differing, same_tokenizer, template_hash, tokenizer_hash
from .models.gguf import check_whole, find_gguf, header_folder
from .models.lfs import is_pointer
from .models.logits import check_logits, logit_rule, output_layer
from .models.packing import check_packing
from .models.quantised import check_groups, check_package
from .models.quiet import quiet
from .models.sources import bare_model, declared_stop_ids, folder_of, hub_is_offline, load_tokenizer, why_not
from .pipelines import get
from .plan.build import Plan
from .plan.spec import StageSpec
from .store.sidecar import SIDECAR_NAME
from .train.student import add_adapter

#: Rows of a data set that are put through the teacher's template.
ROWS = 3
#: Parameters of the largest one-layer copy that is drawn at random to ask a model for its logits.
PROBE_PARAMETERS = 400_000_000


@dataclass
class Found:
    """What a preflight saw: ``wrong`` stops a study, ``warnings`` do not, ``checked`` says what was looked at."""

    wrong: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    def ask(self, check: Callable[[], Any], where: str = "") -> Any:
        """``check()``, or None with its UserError noted once as wrong."""
        try:
            return check()
        except UserError as error:
            line = f"{where}: {error}" if where else str(error)
            if line not in self.wrong:
                self.wrong.append(line)
            return None


class Candidate:
    """A configured model, asked for what its files say beside the weights."""

    def __init__(self, name: str, spec: dict[str, Any], inputs: dict[str, Path]) -> None:
        self.name, self.spec, self.inputs = name, spec, inputs

    @property
    def origin(self) -> dict[str, Any]:
        """The specification whose files are read: of a pruned model, its source's."""
        spec = self.spec
        while spec["source"] == "pruned":
            spec = spec["of"]
        return spec

    @property
    def packaged(self) -> bool:
        """Whether it is a GGUF file that the study's first job will convert: its header is read instead."""
        return self.origin["source"] == "gguf" and "model" not in self.inputs

    @cached_property
    def bare(self) -> Any:
        """The model on torch's meta device. Raises UserError in one line where there is none."""
        try:
            return bare_model(self.spec, self.inputs)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError) as error:
            raise UserError(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from None

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.spec, self.inputs)

    @cached_property
    def stops(self) -> list[int]:
        return declared_stop_ids(self.spec, self.inputs, self.tokenizer)

    @property
    def rows(self) -> int:
        """Rows of the output layer."""
        return int(output_layer(self.bare).weight.shape[0])

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.bare.parameters())

    def check_files(self) -> None:
        """Weights are there and whole by their headers. Raises UserError naming the file."""
        if self.origin["source"] == "random":
            return
        if self.packaged:
            path = find_gguf(self.origin)
            check_whole(path)
            self.inputs = {"model": header_folder(path)}
            return
        place, _ = folder_of(self.origin, self.inputs)
        if not Path(place).is_dir():
            return  # the hub's: whole or refused when it is loaded
        check_weights(Path(place))

    def check_kind(self) -> None:
        """A causal language model of transformers, with the package that its quantisation asks for."""
        if self.origin["source"] != "random":
            place, options = folder_of(self.origin, self.inputs)
            try:
                config = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise UserError(f"its config cannot be read ({why_not(place, error)[:160]})") from None
            if getattr(config, "is_encoder_decoder", False):
                raise UserError(f"is an encoder-decoder ({config.model_type}), not a causal language model")
            method = _quantisation(config)
            if method and (lacks := _lacking(method, config)):
                raise UserError(f"is quantised with {method}: {lacks}")
        output_layer(self.bare)

    def probe(self) -> Any:
        """A copy of one layer with random weights, or None where that is large."""
        config = type(self.bare.config).from_dict(self.bare.config.to_dict())
        text = config.get_text_config()
        if getattr(text, "layer_types", None) and len(set(text.layer_types)) > 1:
            return None  # one layer does not speak for the others
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            if isinstance(getattr(text, key, None), int):
                setattr(text, key, 1)
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:1]
        try:
            with torch.device("meta"):
                small = AutoModelForCausalLM.from_config(config)
            if sum(p.numel() for p in small.parameters()) > PROBE_PARAMETERS:
                return None
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        except (ValueError, RuntimeError, KeyError, AttributeError, TypeError):
            return None  # it has a shape that cannot be cut like this; asked when it is loaded


def _quantisation(config: Any) -> str | None:
    stated = getattr(config, "quantization_config", None)
    if not stated:
        return None
    stated = stated if isinstance(stated, dict) else stated.to_dict()
    return str(stated.get("quant_method") or "an unnamed method")


def _lacking(method: str, config: Any) -> str | None:
    """Why a quantised model cannot be loaded here, in transformers' words; None if it can."""
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True).validate_environment(
            device_map=None, weights_only=True
        )
    except Exception as error:  # each method's own check raises what it likes
        return " ".join(f"{error}".split())[:200]
    return None


def check_weights(folder: Path) -> None:
    """Every safetensors file of a model folder has a whole header and the length that it states, and every shard of
    the index is there. Raises UserError."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            listed = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index}: is not an index of weights") from None
        missing = [name for name in listed if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(listed)} files)")
    elif not files and not list(folder.glob("pytorch_model*.bin")):
        raise UserError(f"{folder}: holds no weights (*.safetensors)")
    for path in files:
        _check_header(path)


def _check_header(path: Path) -> None:
    size = path.stat().st_size
    if is_pointer(path):
        raise UserError(f"{path}: is a git LFS pointer, not the file: git lfs pull")
    with open(path, "rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise UserError(f"{path}: is cut off in its header ({size:,} bytes)")
        try:
            header = json.loads(handle.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: its header is damaged") from None
    if 8 + length + end != size:
        raise UserError(f"{path}: has {size:,} bytes, its header says {8 + length + end:,}: cut off or damaged")


def candidates(plan: Plan, config: Config) -> dict[str, Candidate]:
    """The models that stages load, by configured name. A GGUF model's prepared folder is used where it is whole."""
    found: dict[str, Candidate] = {}
    for node in (*plan.of("teacher_logits"), *plan.of("teacher_generation"), *plan.of("student_training")):
        if node.params["model"]["source"] == "trained":
            continue  # made by the study itself
        name = node.labels["student"] if node.stage == "student_training" else node.labels["teacher"]
        found.setdefault(name, Candidate(name, node.params["model"], _inputs(node)))
    for node in plan.of("evaluation"):
        if node.params["model"]["source"] != "trained":
            found.setdefault(
                node.labels["teacher"], Candidate(node.labels["teacher"], node.params["model"], _inputs(node))
            )
    return found


def _inputs(node: StageSpec) -> dict[str, Path]:
    made = {item.role: Path(item.folder) for item in node.consumes}
    folder = made.get("model")
    return {"model": folder} if folder is not None and (folder / SIDECAR_NAME).is_file() else {}


def preflight(config: Config, plan: Plan, root: str | Path = "results") -> Found:
    """Everything that is wrong with a study as far as it can be known now."""
    quiet()
    found = Found()
    models = candidates(plan, config)
    if any(model.origin["source"] == "hub" for model in models.values()) and not _hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # what is cached is read, without a minute of retries for each of the rest
        found.warnings.append("the model hub does not answer: only what is cached is found")
    models = {name: model for name, model in models.items() if _check_model(found, model, plan)}
    for teacher, student in sorted({(n.labels["teacher"], n.labels["student"]) for n in plan.of("student_training")}):
        if teacher in models and student in models:
            _check_pair(found, models[teacher], models[student], plan)
    _check_teachers(found, models, config)
    for node in plan.of("preprocess"):
        if "dataset" in node.params:
            _check_data(found, node, models, config)
    for node in _trainings(plan):
        student = node.labels["student"]
        found.ask(lambda node=node, name=student: check_memory(node, models.get(name)), f"model {student}")
    _check_quantised(found, plan, models)
    _check_teacher_memory(found, plan, models)
    _check_disk(found, config, root)
    if (series := config.energy.grid.series) is not None:
        found.ask(lambda: read_series(series))
    for name, benchmark in config.evaluation.benchmarks.items():
        if (judge := getattr(benchmark, "judge", None)) is not None:
            found.ask(lambda judge=judge: check_judge(judge), f"evaluation.benchmarks.{name}.judge")
        _check_benchmark(found, name, benchmark)
    return found


def _trainings(plan: Plan) -> list[StageSpec]:
    """The stages that train: not those that quantise."""
    return [node for node in plan.of("student_training") if "training" in node.params]


def _check_quantised(found: Found, plan: Plan, models: Mapping[str, Candidate]) -> None:
    """The package is there, and the groups of weights that share a scale divide each layer's inputs."""
    for node in plan.of("student_training"):
        pipeline = read_params(node.stage, node.params).pipeline
        if not get(pipeline.kind).quantises:
            continue
        where = f"pipelines.{node.labels['pipeline']}"
        found.ask(check_package, where)
        options, model = get(pipeline.kind).settings(pipeline).options, models.get(node.labels["student"])
        if model is not None:
            bits, group = options["bits"], options["group_size"]
            found.ask(lambda m=model, b=bits, g=group: check_groups(m.bare, b, g), f"{where}: model {model.name}")


def _check_benchmark(found: Found, name: str, benchmark: Benchmark) -> None:
    """Its files, rows and task, as far as they can be read before it runs."""
    where = f"evaluation.benchmarks.{name}"
    missing = False
    for key in ("data", "reference", "include_path"):
        if (path := getattr(benchmark, key, None)) and not Path(path).expanduser().exists():
            found.wrong.append(f"{where}.{key}: {path} does not exist")
            missing = True
    if benchmark.kind == "lm_eval" and importlib.util.find_spec("lm_eval") is None:
        found.wrong.append(f"{where}: the package lm_eval is not installed")
    elif benchmark.kind == "lm_eval" and benchmark.task not in LOCAL_TASKS and not missing:
        found.ask(lambda: manager_of(benchmark.task, benchmark.include_path), where)
    if benchmark.kind == "reference" and benchmark.data and not missing:
        found.ask(lambda: conversations(benchmark.data, benchmark.format), where)


def _hub_answers(timeout_s: float = 5.0) -> bool:
    if hub_is_offline():
        return False
    try:
        with urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=timeout_s):
            return True
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _check_model(found: Found, model: Candidate, plan: Plan) -> bool:
    """Whether the model can be asked further: not if it is broken."""
    where = f"model {model.name}"
    before = len(found.wrong)
    found.ask(model.check_files, where)
    if len(found.wrong) == before:
        found.ask(model.check_kind, where)
    if len(found.wrong) == before:  # the teacher's tokenizer makes the data, a student's must agree with it
        teaches = any(n.labels.get("teacher") == model.name for n in plan.nodes.values())
        found.ask(lambda: check_tokenizer(model.tokenizer, model.stops) if teaches else model.stops, where)
    if len(found.wrong) > before:
        return False
    trainings = [n for n in _trainings(plan) if n.labels["student"] == model.name]
    _check_trainings(found, model, trainings)
    probe = model.probe()
    if probe is None:
        found.checked.append(f"{where}: {model.parameters:,} parameters; logits, packing: asked when it is loaded")
    else:
        found.ask(lambda: check_logits(probe), where)
        if any(n.params["training"]["packing"] for n in trainings):
            found.ask(lambda: check_packing(probe), where)
        found.checked.append(f"{where}: {model.parameters:,} parameters, logits as its output layer gives them")
    return len(found.wrong) == before


def _check_trainings(found: Found, model: Candidate, trainings: Sequence[StageSpec]) -> None:
    """Adapters find their targets in the student, asked of it without weights, and the kernel can do its logits."""
    asked = {}
    for node in trainings:
        params = read_params(node.stage, node.params)
        pipeline, training = get(params.pipeline.kind), params.training
        adapter = pipeline.lora(pipeline.settings(params.pipeline), training)
        if adapter is not None:
            asked[adapter.model_dump_json()] = adapter
        if training.liger and pipeline.loss == "ce" and (cap := logit_rule(model.bare.config).cap):
            found.wrong.append(
                f"model {model.name}: training.liger: Liger's kernel has no soft cap, its logits have one ({cap:g}); "
                "set training.liger: false"
            )
            break
    for adapter in asked.values():
        found.ask(lambda a=adapter: add_adapter(bare_model(model.spec, model.inputs), a), f"model {model.name}")


def _check_teachers(found: Found, models: Mapping[str, Candidate], config: Config) -> None:
    """Further teachers score and answer the ids that the reference's tokenizer made."""
    first = models.get(config.teacher.model)
    for name in config.teachers or ():
        other = models.get(name)
        if first is None or other is None or other is first:
            continue
        ours, theirs = (found.ask(lambda m=m: tokenizer_hash(m.tokenizer), f"model {m.name}") for m in (other, first))
        if ours and theirs and not same_tokenizer(ours, theirs):
            ours, theirs = differing(ours, theirs)
            found.wrong.append(f"teacher {name}: its tokenizer ({ours}) is not that of {first.name} ({theirs})")


def _check_pair(found: Found, teacher: Candidate, student: Candidate, plan: Plan) -> None:
    where = f"student {student.name}"
    nodes = [n for n in plan.of("student_training") if n.labels["student"] == student.name]
    kinds = [get(n.params["pipeline"]["kind"]) for n in nodes]
    logits = any(kind.needs == "teacher_logits" or kind.live_teacher for kind in kinds)

    def vocabulary() -> None:
        ours, theirs = tokenizer_hash(student.tokenizer), tokenizer_hash(teacher.tokenizer)
        if logits:
            check_vocabulary(theirs, teacher.rows, ours, student.rows, student.name, len(student.tokenizer))
        elif not same_tokenizer(ours, theirs):
            ours, theirs = differing(ours, theirs)
            raise UserError(
                f"its tokenizer ({ours}) is not that of the teacher {teacher.name} ({theirs}), which the data are made "
                "with"
            )

    def template() -> None:
        if template_hash(student.tokenizer) != template_hash(teacher.tokenizer):
            raise UserError(
                f"its chat template is not that of the teacher {teacher.name}, which the data are made with: it would "
                f"be asked otherwise than it was trained; set models.{student.name}.tokenizer to the teacher's"
            )

    def stop() -> None:
        ends = labelled_end(teacher)
        if ends is not None and ends not in student.stops:
            text = teacher.tokenizer.decode([ends])
            raise UserError(
                f"answers in the data end with {text!r}, which does not stop it (its stop ids: "
                f"{', '.join(map(str, student.stops))}): it would never stop; set models.{student.name}.tokenizer to "
                "the teacher's, or name the token in its generation_config.json"
            )

    for check in (vocabulary, template, stop):
        found.ask(check, where)


def labelled_end(model: Candidate) -> int | None:
    """The token that ends a label as the data are made."""
    probe = [{"role": "user", "content": "One two"}, {"role": "assistant", "content": "three four"}]
    try:
        turns = encode_turns(model.tokenizer, probe, None, model.stops)
    except UserError:
        return None  # said by the check of the tokenizer
    labels = [i for turn in turns for i, m in zip(turn.input_ids, turn.loss_mask, strict=True) if m]
    return labels[-1] if labels else None


def _check_data(found: Found, node: StageSpec, models: Mapping[str, Candidate], config: Config) -> None:
    dataset, where = read_params(node.stage, node.params).dataset, f"dataset {node.labels['dataset']}"
    teacher = models.get(config.teacher.model)
    used = [models[n] for n in config.students if n in models] + ([teacher] if teacher else [])
    for model in used:
        if (limit := positions(model)) is not None and dataset.max_length > limit:
            found.wrong.append(
                f"{where}: max_length {dataset.max_length} is beyond the {limit} positions of model {model.name}"
            )
    if isinstance(dataset, GeneratedData) or teacher is None:
        return
    rows = found.ask(lambda: list(islice(read_rows(dataset), ROWS)), where)
    if rows is None:
        return
    highest = found.ask(lambda: max((_highest(teacher, row, dataset.format) for row in rows), default=0), where)
    for model in used if highest is not None else ():
        if highest >= model.rows:
            found.wrong.append(
                f"{where}: token id {highest} of its rows is beyond the {model.rows} of model {model.name}"
            )
    found.checked.append(f"{where}: {len(rows)} rows through the template of {teacher.name}")


def _highest(teacher: Candidate, row: Any, format_name: str) -> int:
    """The largest token id of a row; 0 for one that its format leaves out or refuses (counted when they are read)."""
    try:
        item = read(row, format_name)
        messages, _ = accepted(teacher.tokenizer, item.messages)
        turns = encode_turns(teacher.tokenizer, messages, None, teacher.stops)
    except (Filtered, Refused):
        return 0
    except UserError as error:
        raise UserError(f"{getattr(row, 'place', 'a row')}: {error}") from None
    return max((max(turn.input_ids) for turn in turns), default=0)


def positions(model: Candidate) -> int | None:
    """How many positions the model was made for; None where it does not say."""
    config = model.bare.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        if isinstance(value := getattr(config, key, None), int) and value > 0:
            return value
    return None


def memory() -> tuple[int, str]:
    """Bytes that one process may fill, and where: the smallest GPU, or the host."""
    if torch.cuda.is_available():
        sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
        return min(sizes), "the GPU"
    return psutil.virtual_memory().total, "this host"


def check_memory(node: StageSpec, model: Candidate | None, available: tuple[int, str] | None = None) -> None:
    """A lower bound of what training holds (weights, gradients, AdamW's moments) fits. Raises UserError."""
    if model is None:
        return
    training = read_params(node.stage, node.params).training
    precision = training.precision
    split = training.sharding == "full"
    shares = (training.processes or 1) * (training.nodes or 1) if split else 1
    needs, (size, where) = model.parameters * training_bytes(training) / shares, available or memory()
    if needs > size:
        raise UserError(
            f"training it with {training.optimizer} and precision {precision} takes at least {needs / 1e9:.1f} GB, "
            f"{where} has {size / 1e9:.1f}; set training.precision: bf16_stochastic, optimizer: adafactor, sharding: "
            "full or lora"
        )


def _check_teacher_memory(found: Found, plan: Plan, models: Mapping[str, Candidate]) -> None:
    size, where = memory()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 1
    for node in (*plan.of("teacher_logits"), *plan.of("teacher_generation")):
        model = models.get(node.labels["teacher"])
        if model is None:
            continue
        needs = model.parameters * weight_bytes(node.params["dtype"])
        line = f"model {model.name}: its weights take {needs / 1e9:.1f} GB, {where} has {count * size / 1e9:.1f}"
        if needs > size * count and line not in found.wrong:
            found.wrong.append(line)


def _check_disk(found: Found, config: Config, root: str | Path) -> None:
    place = Path(root).resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    forecast = plan_forecast(config, root)
    total = next((row for row in forecast.stages if row["stage"] == "total"), None)
    if total is None:
        return
    if total["low_bytes"] > free:
        found.wrong.append(
            f"{root}: {free / 1e9:.1f} GB are free, the artifacts take at least {total['low_bytes'] / 1e9:.1f}"
        )
    elif total["likely_bytes"] > free:
        found.warnings.append(
            f"{root}: {free / 1e9:.1f} GB are free, the artifacts will likely take {total['likely_bytes'] / 1e9:.1f}"
        )


def check_judge(judge: Judge) -> None:
    """A judge answers, with its key and by its model's name: one token of one request. A local one's folder is there.
    Raises UserError."""
    if judge.kind == "local":
        path = Path(judge.model).expanduser()
        if (os.sep in judge.model and judge.model.startswith((".", "/", "~"))) and not path.is_dir():
            raise UserError(f"model {judge.model} is not a folder")
        return
    Endpoint(judge, pause_s=0.5).greet()
