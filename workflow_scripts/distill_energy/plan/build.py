"""From a configuration to every stage that it implies.

Pure but for local sources, whose content is part of a version; nothing heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..config.evaluation import NEEDS_TEACHER, Benchmark
from ..config.names import meant
from ..config.params import PipelineParams
from ..config.schema import Config
from ..config.sources import GgufModel, PrunedModel
from ..config.training import Pipeline, Training
from ..errors import UserError
from ..pipelines import get, kinds
from ..pipelines.quantised import TEACHER
from ..store.content import content_of
from ..store.remote import is_remote, local_root, receipts
from .recipes import RECIPES
from .spec import Input, StageSpec, digest, make_spec
from .sweep import Setting, settings


@dataclass
class Plan:
    """All stages of a configuration, by key (stage, name, version)."""

    nodes: dict[tuple[str, str, str], StageSpec] = field(default_factory=dict)

    def add(self, spec: StageSpec) -> StageSpec:
        """Register a stage; two with the same key are the same artifact."""
        return self.nodes.setdefault(spec.key, spec)

    def spec(self, stage: str, name: str, version: str) -> StageSpec:
        """The stage that makes an artifact. Raises UserError if the configuration no longer implies it."""
        try:
            return self.nodes[(stage, name, version)]
        except KeyError:
            known = sorted({v for s, n, v in self.nodes if (s, n) == (stage, name)})
            hint = f"its version there is {', '.join(known)}" if known else "nothing there has that name"
            raise UserError(f"{stage}/{name}/{version}: the configuration does not imply it ({hint})") from None

    def of(self, stage: str) -> list[StageSpec]:
        """Every stage of one kind."""
        return [spec for spec in self.nodes.values() if spec.stage == stage]

    @cached_property
    def sidecars(self) -> list[str]:
        """Sidecar path of every stage."""
        return [spec.sidecar for spec in self.nodes.values()]


def build_plan(config: Config, root: str = "results") -> Plan:
    """Every stage of ``config``, its artifacts under ``root`` (teacher artifacts under the teacher store, if any).

    Of local sources the content is part of the version (``store.content``): nothing else is read.
    """
    return _Builder(config, root).build()


def _content(source: dict[str, Any]) -> dict[str, str]:
    """Fingerprints of a source's local files, and of its tokenizer's where that is a folder of its own."""
    found = {"content": content_of(source)}
    if source.get("tokenizer"):
        found["tokenizer_content"] = content_of({"source": "folder", "path": source["tokenizer"]})
    return {key: value for key, value in found.items() if value is not None}


def _own(setting: Setting) -> PipelineParams:
    """A pipeline's own parameters, as its kind reads them."""
    return PipelineParams(
        kind=setting.kind, alpha=setting.alpha, temperature=setting.temperature, options=setting.options
    )


class _Builder:
    """Adds the stages in the order of the data: prerun, preprocess, teacher, students, evaluation."""

    def __init__(self, config: Config, root: str) -> None:
        self.config = config
        self.root = root
        self.store = config.teacher_store if is_remote(config.teacher_store) else None
        #: Where teachers' artifacts lie.
        self.shared = {"root": local_root(config.teacher_store, root), "receipts": receipts(config.teacher_store, root)}
        self.plan = Plan()
        self.energy = config.energy.model_dump(mode="json")
        self.model_params: dict[str, dict[str, Any]] = {}

    def build(self) -> Plan:
        config = self.config
        self.prerun = self._stage("prerun", "host", "prerun", {**config.prerun.model_dump(), "expect": self._expect()})
        for suite in config.evaluation.resolved_suites():
            self._teacher_evaluation(suite)
        for name, pipeline in config.pipelines.items():
            for dataset in [pipeline.dataset] if pipeline.dataset else config.datasets:
                for setting in settings(name, pipeline, config):
                    kind = self._kind(setting)
                    if kind.quantises:
                        self._quantise(setting, pipeline, kind, dataset)
                        continue
                    learns = kind.needs or kind.live_teacher
                    teachers = pipeline.teachers or config.teachers if learns else None
                    for teacher in teachers or (config.teacher.model,):
                        for student in pipeline.students or config.students:
                            for seed in config.seeds:
                                self._run(setting, dataset, student, seed, teacher)
        return self.plan

    # --- parts ---------------------------------------------------------------------------------------------------

    def _expect(self) -> dict[str, Any] | None:
        expect = self.config.energy.expect
        return expect.model_dump() if expect else None

    def _stage(self, stage: str, name: str, work: str, params: dict, consumes: tuple[Input, ...] = (), **rest: Any):
        if stage != "prerun":
            consumes = (*consumes, self.prerun.as_input("prerun", hashed=False))
        rest.setdefault("root", self.root)
        rest |= {"energy": self.energy, "store": self.store}
        return self.plan.add(make_spec(stage, name, RECIPES[work], params, consumes, **rest))

    def model(self, name: str) -> dict[str, Any]:
        """A model's dict with references resolved (see docs/architecture.md)."""
        if name not in self.model_params:
            model = self.config.models[name]
            params = model.model_dump(mode="json", exclude={"parameters", "shape"})
            params |= _content(params)
            if isinstance(model, PrunedModel):
                params["of"] = self.model(model.of)
            self.model_params[name] = params
        return self.model_params[name]

    def _model_input(self, name: str, role: str = "model") -> tuple[Input, ...]:
        """The converted folder that a GGUF model (or a pruned copy of one) is loaded from."""
        model = self.config.models[name]
        if isinstance(model, PrunedModel):
            return self._model_input(model.of, role)
        if not isinstance(model, GgufModel):
            return ()
        params = {"model": self.model(name)}
        spec = self._stage("preprocess", f"model-{name}", "preprocess_model", params, labels={"model": name})
        return (spec.as_input(role),)

    def _data(self, dataset: str) -> StageSpec:
        teacher = self.config.teacher.model
        source = self.config.datasets[dataset].model_dump(mode="json")
        params = {"dataset": source | _content(source), "model": self.model(teacher)}
        name = f"data-{dataset}"
        labels = {"dataset": dataset}
        return self._stage("preprocess", name, "preprocess_data", params, self._model_input(teacher), labels=labels)

    def _teacher_evaluation(self, suite: str) -> StageSpec:
        teacher = self.config.teacher.model
        labels = {"role": "teacher", "teacher": teacher, "suite": suite}
        params = {"model": self.model(teacher), **self._suite(suite)}
        inputs = (*self._model_input(teacher), *self._held_out(suite))
        return self._stage("evaluation", f"{suite}-{teacher}", "evaluation", params, inputs, labels=labels)

    def _contamination(self, suite: str, dataset: str) -> StageSpec:
        """Which of a suite's prompts, as the teacher was asked them, occur in a data set."""
        consumes = (
            self._teacher_evaluation(suite).as_input("teacher_evaluation"),
            self._data(dataset).as_input("data"),
        )
        labels = {"suite": suite, "dataset": dataset}
        return self._stage(
            "contamination", f"{suite}-{dataset}", "contamination", {"words": 13}, consumes, labels=labels
        )

    def _suite(self, suite: str) -> dict[str, Any]:
        evaluation = self.config.evaluation
        names = evaluation.resolved_suites()[suite]
        benchmarks = {name: self._benchmark(evaluation.benchmarks[name]) for name in names}
        shared = evaluation.model_dump(mode="json", include={"dtype", "engine", "enable_thinking"})
        return {**shared, "benchmarks": benchmarks}

    def _benchmark(self, benchmark: Benchmark) -> dict[str, Any]:
        """Its parameters; of the user's own tasks and files the content too."""
        params = benchmark.model_dump(mode="json")
        if benchmark.kind == "lm_eval" and benchmark.include_path:
            params |= _content({"source": "files", "path": benchmark.include_path})
        if benchmark.kind == "reference" and benchmark.data:
            params |= _content({"source": "files", "path": benchmark.data})
        return params

    def _held_out(self, suite: str) -> tuple[Input, ...]:
        """The data sets whose validation rows a suite asks."""
        found = [self.config.evaluation.benchmarks[name] for name in self.config.evaluation.resolved_suites()[suite]]
        names = dict.fromkeys(b.dataset for b in found if b.kind == "reference" and b.dataset)
        return tuple(self._data(name).as_input(f"validation-{name}") for name in names)

    def _teacher_artifact(self, needs: str, dataset: str, setting: Setting, teacher: str) -> StageSpec:
        data, name = self._data(dataset).as_input("data"), f"{teacher}-{dataset}"
        if needs == "teacher_logits":
            return self._logits(name, teacher, dataset, data, **self.shared)
        params = {
            "model": self.model(teacher),
            "dtype": self.config.teacher.dtype,
            **self._generation(dataset, setting),
        }
        inputs, labels = (*self._model_input(teacher), data), {"teacher": teacher, "dataset": dataset}
        return self._stage(needs, name, needs, params, inputs, labels=labels, **self.shared)

    def _logits(self, name: str, teacher: str, dataset: str, data: Input, **rest: Any) -> StageSpec:
        """The teacher's distributions over the answers of ``data``."""
        params = {"model": self.model(teacher), "dtype": self.config.teacher.dtype}
        params["logits"] = self.config.teacher.logits.model_dump(mode="json", exclude={"processes"})
        rest["runs"] = {"processes": self.config.teacher.logits.processes}
        inputs, labels = (*self._model_input(teacher), data), {"teacher": teacher, "dataset": dataset}
        return self._stage("teacher_logits", name, "teacher_logits", params, inputs, labels=labels, **rest)

    def _generation(self, dataset: str, setting: Setting) -> dict[str, Any]:
        generation = self.config.teacher.generation.model_dump(mode="json")
        if setting.max_new_tokens is not None:
            generation["max_new_tokens"] = setting.max_new_tokens
        return {"generation": generation, "max_length": self.config.datasets[dataset].max_length}

    def _sampler(self, setting: Setting, dataset: str, student: str) -> tuple[str, str, StageSpec]:
        """(pipeline, student, training) of the student that answers the prompts for a setting's runs."""
        options = self._kind(setting).settings(_own(setting)).options
        sampler, who = options["sampler"] or self.config.accounting.baseline, options.get("student") or student
        where = f"{self._where(setting)}.options"
        if sampler not in self.config.pipelines:
            raise UserError(f"{where}.sampler: {sampler!r} is not one of {', '.join(self.config.pipelines)}")
        if who not in self.config.students:
            raise UserError(f"{where}.student: {who!r} is not one of {', '.join(self.config.students)}")
        first = next(settings(sampler, self.config.pipelines[sampler], self.config))
        theirs_kind = self._kind(first)
        if theirs_kind.samples:
            raise UserError(f"{where}.sampler: {sampler!r} samples itself")
        if theirs_kind.quantises:
            raise UserError(f"{where}.sampler: {sampler!r} trains no student")
        theirs = self.config.pipelines[sampler]
        if dataset != (theirs.dataset or dataset):
            raise UserError(f"{where}.sampler: {sampler!r} trains on data set {theirs.dataset}, not on {dataset}")
        if who not in (theirs.students or (who,)):
            raise UserError(f"{where}.sampler: {sampler!r} trains no student {who}")
        return sampler, who, self._training(first, dataset, who, self.config.seeds[0], self.config.teacher.model)

    def _answers(self, setting: Setting, dataset: str, student: str, teacher: str) -> tuple[str, StageSpec, StageSpec]:
        """(who answered, its training, its answers to the prompts)."""
        sampler, who, trained = self._sampler(setting, dataset, student)
        labels = {"teacher": teacher, "dataset": dataset, "student": who, "role": "sampler"}
        params = {"model": {"source": "trained"}, "dtype": self.config.teacher.dtype}
        params |= self._generation(dataset, setting)
        inputs = (trained.as_input("model"), self._data(dataset).as_input("data"))
        name = f"{who}-{dataset}-{sampler}-answers"
        rest = {"labels": labels, **self.shared}
        answers = self._stage("teacher_generation", name, "teacher_generation", params, inputs, **rest)
        return f"{who}-{sampler}", trained, answers

    def _sampled(self, setting: Setting, dataset: str, student: str, teacher: str) -> tuple[Input, Input]:
        """(a student's answers to the prompts, the teacher's distributions over them), as a run's inputs."""
        whose, _, answers = self._answers(setting, dataset, student, teacher)
        name, data = f"{teacher}-{dataset}-{whose}-answers", answers.as_input("data")
        scored = self._logits(name, teacher, dataset, data, **self.shared)
        return answers.as_input("teacher_generation"), scored.as_input("teacher_logits")

    def _paired(self, setting: Setting, dataset: str, student: str, teacher: str) -> tuple[Input, ...]:
        """The student that a run starts from, the teacher's answers, that student's own, and its log-probabilities of
        both, as a run's inputs."""
        whose, trained, rejected = self._answers(setting, dataset, student, teacher)
        chosen = self._teacher_artifact("teacher_generation", dataset, setting, teacher)
        inputs = (trained.as_input("model"), chosen.as_input("chosen"), rejected.as_input("rejected"))
        labels = {"teacher": teacher, "dataset": dataset, "student": student, "role": "sampler"}
        scored = self._stage(
            "reference_logprobs",
            f"{teacher}-{dataset}-{whose}-pairs",
            "reference_logprobs",
            # Computed as the training computes, so that its first step starts at no difference.
            {"model": {"source": "trained"}, "precision": setting.training["precision"]},
            inputs,
            labels=labels,
        )
        return *inputs, scored.as_input("reference")

    def _run(self, setting: Setting, dataset: str, student: str, seed: int, teacher: str) -> None:
        training = self._training(setting, dataset, student, seed, teacher)
        for suite in self.config.evaluation.resolved_suites():
            self._evaluation(suite, training)

    def _quantise(self, setting: Setting, pipeline: Pipeline, kind: Any, dataset: str) -> None:
        """Runs whose student is a model that is there, quantised: the teacher, or what another pipeline trained."""
        where = self._where(setting)
        of = kind.settings(_own(setting)).options["of"]
        if setting.pipeline == self.config.accounting.baseline:
            raise UserError(f"{self.config.origin}: accounting.baseline: {setting.pipeline!r} trains nothing")
        for key in ("teachers", "training", "sweep"):
            if getattr(pipeline, key):
                raise UserError(f"{where}.{key}: {setting.kind} trains nothing; options.of names what it quantises")
        if of == TEACHER:
            if pipeline.students:
                raise UserError(f"{where}.students: options.of is the teacher; a pipeline there has students")
            models = [(self.config.teacher.model, self.config.seeds[0])]  # rounding draws nothing
        else:
            if of not in self.config.pipelines:
                known = ", ".join((TEACHER, *self.config.pipelines))
                raise UserError(f"{where}.options.of: {of!r} is not one of {known}")
            models = [(s, seed) for s in pipeline.students or self.config.students for seed in self.config.seeds]
        for student, seed in models:
            made = self._quantised(setting, of, dataset, student, seed)
            for suite in self.config.evaluation.resolved_suites():
                self._evaluation(suite, made)

    def _quantised(self, setting: Setting, of: str, dataset: str, student: str, seed: int) -> StageSpec:
        teacher = self.config.teacher.model
        params: dict[str, Any] = {"pipeline": _own(setting).model_dump(), "dtype": self.config.teacher.dtype}
        labels: dict[str, Any] = {"role": "student", "teacher": teacher, "dataset": dataset, "student": student}
        if of == TEACHER:
            params["model"], consumes = self.model(student), self._model_input(student)
            labels["group"] = digest([params, dataset])
        else:
            first = next(settings(of, self.config.pipelines[of], self.config))
            if self._kind(first).quantises:
                where = f"{self._where(setting)}.options.of"
                raise UserError(f"{where}: {of!r} quantises itself")
            trained = self._training(first, dataset, student, seed, teacher)
            params["model"], consumes = {"source": "trained"}, (trained.as_input("model"),)
            labels["group"] = digest([params, trained.labels["group"]])
        labels |= {"pipeline": setting.pipeline, "hyperparameters": setting.hyperparameters, "seed": seed}
        name = f"{dataset}-{setting.tag}-{student}-s{seed}"
        return self._stage("student_training", name, "quantised", params, consumes, labels=labels, seed=seed)

    def _where(self, setting: Setting) -> str:
        """What a message about a setting names: the file and the pipeline."""
        return f"{self.config.origin}: pipelines.{setting.pipeline}"

    def _kind(self, setting: Setting) -> Any:
        """The setting's kind of pipeline, with its parameters checked before any job. Raises UserError."""
        try:
            kind = get(setting.kind)
            kind.settings(_own(setting))
            return kind
        except KeyError as error:
            where = f"{self._where(setting)}.kind"
            raise UserError(f"{where}: {error.args[0]}{meant(setting.kind, kinds())}") from None
        except UserError as error:
            raise UserError(f"{self._where(setting)}: {error.args[0]}") from None

    def _training(self, setting: Setting, dataset: str, student: str, seed: int, teacher: str) -> StageSpec:
        kind = self._kind(setting)
        needs = kind.needs
        if why := kind.refuses(Training.model_validate(setting.training)):
            raise UserError(f"{self._where(setting)}: {why}")
        model = self.model(student)
        consumes = [*self._model_input(student), self._data(dataset).as_input("data")]
        if kind.pairs:
            consumes = [*consumes[-1:], *self._paired(setting, dataset, student, teacher)]
            model = {"source": "trained"}
        elif kind.samples:
            consumes += self._sampled(setting, dataset, student, teacher)
        elif needs:
            consumes.append(self._teacher_artifact(needs, dataset, setting, teacher).as_input(needs))
        if kind.live_teacher:
            consumes += self._model_input(teacher, "teacher")
        params: dict[str, Any] = {
            "model": model,
            "teacher": self.model(teacher) if needs or kind.live_teacher else None,
            "pipeline": _own(setting).model_dump(),
            "training": setting.training,
        }
        group = digest([params, sorted(i.version for i in consumes)])
        labels = {
            "role": "student",
            "teacher": teacher,
            "dataset": dataset,
            "pipeline": setting.pipeline,
            "student": student,
            "hyperparameters": setting.hyperparameters,
            "seed": seed,
            "group": group,
        }
        whose = "" if teacher == self.config.teacher.model else f"-from-{teacher}"
        name = f"{dataset}-{setting.tag}{whose}-{student}-s{seed}"
        params["seed"] = seed
        return self._stage(
            "student_training", name, "student_training", params, tuple(consumes), labels=labels, seed=seed
        )

    def _evaluation(self, suite: str, training: StageSpec) -> StageSpec:
        params = {"model": {"source": "trained"}, **self._suite(suite)}
        dataset = training.labels["dataset"]
        consumes = [training.as_input("model"), self._data(dataset).as_input("data"), *self._held_out(suite)]
        if any(benchmark["kind"] in NEEDS_TEACHER for benchmark in params["benchmarks"].values()):
            consumes.append(self._teacher_evaluation(suite).as_input("teacher_evaluation"))
        if any(benchmark["kind"] != "inference" for benchmark in params["benchmarks"].values()):
            # Looked up, and looked for where it is lacking: the count is the same.
            consumes.append(self._contamination(suite, dataset).as_input("contamination", hashed=False))
        labels = {**training.labels, "suite": suite, "run": training.version}
        name = f"{suite}-{training.name}"
        return self._stage("evaluation", name, "evaluation", params, tuple(consumes), labels=labels, seed=training.seed)
