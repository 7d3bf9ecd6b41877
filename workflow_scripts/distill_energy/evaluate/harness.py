"""Tasks of lm-evaluation-harness: any by its name, and GSM8K, MMLU and IFEval on local files where there is no hub.

A local file becomes a task that includes the harness's own YAML and replaces only where the rows come from. The model
is the one that the suite has loaded; every forward pass goes through ``_counting_model``, so that tokens are counted.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..config.evaluation import LmEval
from ..errors import UserError
from . import harness_tasks
from .generate import generate
from .harness_data import GSM8K_SHOTS, MMLU_SHOTS, LocalTask, gsm8k, ifeval, mmlu
from .result import Item, Result, summarise
from .session import Session

#: Tokens of an answer at most where a task does not say (the harness's own default).
HARNESS_TOKENS = 256
CHANCE = {"gsm8k": 0.0, "mmlu": 0.25}
#: Answers that follow no instruction on purpose; IFEval's chance is the best of their scores.
TRIVIAL = ("I do not know.", "yes", 'Answer:\n\n* one\n* two\n\n"The end"')


def lm_eval(session: Session, name: str, params: LmEval) -> Result:
    """Run one task of the harness. MMLU: accuracy over all rows. GSM8K: exact match of the last number (strict match in
    ``extra``). IFEval: prompt-level strict accuracy (the other three in ``extra``). Any other: see ``named_task``.

    The chat template is applied to IFEval, whose prompts are requests, and not to the other two, as the harness does by
    default; ``chat`` overrides.
    """
    if params.task not in READ:
        return named_task(session, name, params)
    task, folder = params.task, session.scratch(name)
    chat = params.chat
    chat = task == "ifeval" if chat is None else chat
    notes = [f"lm-eval {_version()}"]
    local = _local(task, params, folder) if params.data else None
    shots = params.few_shot
    if local is not None:
        notes += local.notes
        shots = local.shots
    notes.append(f"chat template {'applied' if chat else 'not applied'}")
    with _quiet(), _instruction_checkers(notes) if task == "ifeval" else contextlib.nullcontext():
        samples = _run(session, name, task, params, local, shots, chat)
        items = READ[task](samples, lambda text: len(session.encode(text)))
        chance = CHANCE[task] if task in CHANCE else _trivial_score(samples)
    return summarise(items, chance, "; ".join(notes), few_shot=shots)


def named_task(session: Session, name: str, params: LmEval) -> Result:
    """A task of the harness, or the user's own, as its YAML says: the mean over items of the metric that is asked for,
    else of its first that is better when higher."""
    chat = bool(params.chat)
    manager = harness_tasks.manager_of(params.task, params.include_path)
    with _quiet():
        samples, done = _samples(session, name, params, manager, [params.task], params.few_shot, chat)
    metric, kept = harness_tasks.choose(samples, done["higher_is_better"], params.metric, params.filter)
    items = harness_tasks.read(samples, metric, kept, _text, lambda text: len(session.encode(text)))
    chance = params.chance
    chance = harness_tasks.chance(samples, kept) if chance is None else chance
    template = f"chat template {'applied' if chat else 'not applied'}"
    notes = [f"lm-eval {_version()}", f"metric {metric}", f"filter {kept}", template]
    shots = sorted({count for count in done["n-shot"].values() if isinstance(count, int)})
    return summarise(items, chance, "; ".join(notes), few_shot=shots[0] if len(shots) == 1 else None)


def _version() -> str:
    return version("lm_eval")


def _local(task: str, params: LmEval, folder: Path) -> LocalTask:
    path = Path(params.data).expanduser()
    if not path.exists():
        raise UserError(f"evaluation: data {path} of task {task} does not exist")
    make = {"gsm8k": gsm8k, "mmlu": mmlu, "ifeval": ifeval}[task]
    return make(path, folder, params.limit, params.few_shot, params.seed)


def _run(
    session: Session, name: str, task: str, params: LmEval, local: LocalTask | None, shots, chat: bool
) -> list[dict]:
    """The harness's samples of all subtasks, each with its task's name."""
    from lm_eval.tasks import TaskManager

    if local is not None:
        manager = TaskManager(include_path=str(local.folder), include_defaults=False)
        tasks, limit = local.tasks, None
    else:
        manager, tasks, limit = TaskManager(), [task], params.limit
        default = {"gsm8k": GSM8K_SHOTS, "mmlu": MMLU_SHOTS, "ifeval": 0}[task]
        shots = default if shots is None else shots
    return _samples(session, name, params.model_copy(update={"limit": limit}), manager, tasks, shots, chat)[0]


def _samples(session: Session, name: str, params: LmEval, manager, tasks, shots, chat: bool) -> tuple[list[dict], dict]:
    """(samples of all subtasks with their task's name, all that the harness returned)."""
    from lm_eval import simple_evaluate

    limited = params.max_new_tokens
    with session.phase(name):
        done = simple_evaluate(
            model=_engine_model(session) if session.engine else _counting_model(session, params.batch_size),
            tasks=tasks,
            num_fewshot=shots,
            task_manager=manager,
            limit=params.limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            gen_kwargs={"max_gen_toks": limited} if limited and params.task != "mmlu" else None,
            bootstrap_iters=0,
            log_samples=True,
            random_seed=params.seed,
            numpy_random_seed=params.seed,
            torch_random_seed=params.seed,
            fewshot_random_seed=params.seed,
        )
    found = [{**row, "task": key} for key, rows in done["samples"].items() for row in rows]
    if not found:
        raise RuntimeError(f"the harness returned no sample of {params.task}")
    return found, done


def _counting_model(session: Session, batch_size: int):
    """The harness's wrapper of the loaded model, which books every token that goes through it."""
    from lm_eval.models.huggingface import HFLM

    class Counting(HFLM):
        def _model_call(self, inps, attn_mask=None, labels=None):
            # The wrapper pads with zeros on the right and keeps no mask.
            real = (inps != 0).long().flip(-1).cumsum(-1).clamp(max=1).sum()
            session.count(processed=int(real), padding=inps.numel() - int(real))
            return super()._model_call(inps, attn_mask, labels)

        def _model_generate(self, context, max_length, stop, **kwargs):
            mask = kwargs.get("attention_mask")
            session.count(mask) if mask is not None else session.count(processed=context.numel())
            made = super()._model_generate(context, max_length, stop, **kwargs)
            new = made[:, context.shape[1] :]
            counts = [_made(row, session.stop_ids) for row in new.tolist()]
            session.count(generated=sum(counts), padding=new.numel() - sum(counts))
            return made

    # Beyond its end-of-turn token a model may know others; the harness itself passes only its stop strings.
    return Counting(pretrained=session.model, tokenizer=session.tokenizer, batch_size=batch_size)


def _engine_model(session: Session):
    """The harness's model interface over the session's serving engine: generation alone, by ``generate``."""
    from lm_eval.api.model import LM

    class Engine(LM):
        tokenizer_name = "session"

        def loglikelihood(self, requests):
            raise UserError("evaluation.engine vllm: this task asks for likelihoods; use transformers for it")

        loglikelihood_rolling = loglikelihood

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return session.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        def chat_template(self, chat_template=False):
            return session.tokenizer.chat_template or ""

        def generate_until(self, requests, disable_tqdm=False):
            groups: dict[tuple, list[int]] = {}
            for number, request in enumerate(requests):
                options = request.args[1]
                until = options.get("until") or []
                until = (until,) if isinstance(until, str) else tuple(until)
                groups.setdefault((until, int(options.get("max_gen_toks", HARNESS_TOKENS))), []).append(number)
            texts: dict[int, str] = {}
            for (until, room), numbers in groups.items():
                prompts = [session.encode(requests[number].args[0]) for number in numbers]
                for number, done in zip(numbers, generate(session, prompts, room, stop=until), strict=True):
                    texts[number] = done.text
            return [texts[number] for number in range(len(requests))]

    return Engine()


def _made(row: list[int], stops: list[int]) -> int:
    """Tokens of a generated row up to and with the one that ends it; what follows is padding."""
    return next((i + 1 for i, token in enumerate(row) if token in stops), len(row))


def _text(row: dict[str, Any]) -> str:
    """The prompt as the model saw it."""
    arguments = row["arguments"]
    first = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    return next(iter(first.values())) if isinstance(first, dict) else first[0]


def _response(row: dict[str, Any]) -> str:
    first = row["resps"][0]
    return first[0] if isinstance(first, list | tuple) else first


def _gsm8k(samples: list[dict[str, Any]], length: Callable[[str], int]) -> list[Item]:
    by_filter: dict[str, dict[int, dict]] = {}
    for row in samples:
        by_filter.setdefault(row["filter"], {})[row["doc_id"]] = row
    strict, flexible = by_filter["strict-match"], by_filter["flexible-extract"]
    return [
        Item(
            f"gsm8k-{key}",
            row["doc"]["question"],
            row["doc"]["answer"].split("####")[-1].strip(),
            str(row["filtered_resps"][0]),
            float(row["exact_match"]),
            length(_response(row)),
            {"strict_match": float(strict[key]["exact_match"]), "response": _response(row)},
        )
        for key, row in sorted(flexible.items())
    ]


def _mmlu(samples: list[dict[str, Any]], length: Callable[[str], int]) -> list[Item]:
    items = []
    for row in samples:
        likelihoods = [float(r[0][0] if isinstance(r[0], list | tuple) else r[0]) for r in row["resps"]]
        best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
        subject = row["task"].removeprefix("local_").removeprefix("mmlu_")
        items.append(
            Item(
                f"mmlu-{subject}-{row['doc_id']}",
                row["doc"]["question"],
                "ABCD"[int(row["doc"]["answer"])],
                "ABCD"[best],
                float(row["acc"]),
                1,
                {"subject": subject, "log_likelihoods": likelihoods},
            )
        )
    return items


def _ifeval(samples: list[dict[str, Any]], length: Callable[[str], int]) -> list[Item]:
    return [
        Item(
            f"ifeval-{row['doc']['key']}",
            row["doc"]["prompt"],
            ", ".join(row["doc"]["instruction_id_list"]),
            _response(row),
            float(row["prompt_level_strict_acc"]),
            length(_response(row)),
            {
                "prompt_level_loose": float(row["prompt_level_loose_acc"]),
                "instructions_strict": [bool(x) for x in row["inst_level_strict_acc"]],
                "instructions_loose": [bool(x) for x in row["inst_level_loose_acc"]],
            },
        )
        for row in samples
    ]


READ = {"gsm8k": _gsm8k, "mmlu": _mmlu, "ifeval": _ifeval}


def _trivial_score(samples: list[dict[str, Any]]) -> float:
    """IFEval's chance: the best prompt-level strict score of an answer that is the same for every prompt."""
    from lm_eval.tasks.ifeval.utils import process_results

    docs = [row["doc"] for row in samples]
    scores = [sum(process_results(doc, [text])["prompt_level_strict_acc"] for doc in docs) for text in TRIVIAL]
    return max(scores) / len(docs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness from reaching for the network where the user said that there is none, and its bars short."""
    old = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if old is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = old


@contextlib.contextmanager
def _instruction_checkers(notes: list[str]) -> Iterator[None]:
    """IFEval's checkers with nltk's punkt where it is installed, else with splitters that need no download.

    Without punkt two of the checkers raise: the count of sentences, and the count of words in capitals. They then get
    the sentence splitter that the harness ships for another checker, and nltk's word tokenizer without its sentence
    step. Which of them served is said in the notes.
    """
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        pass
    else:
        notes.append("sentences by nltk punkt")
        yield
        return
    notes.append("punkt is not installed: sentences by lm-eval's rule-based splitter")
    download = nltk.download
    nltk.download = lambda *args, **kwargs: False  # importing the checkers would start a download
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports a download whether there was one or not
            from lm_eval.tasks.ifeval import instructions_util as util
    finally:
        nltk.download = download
    kept = util.count_sentences, util.nltk
    util.count_sentences = lambda text: len(util.split_into_sentences(text))
    util.nltk = _WithoutPunkt(nltk)
    try:
        yield
    finally:
        util.count_sentences, util.nltk = kept


class _WithoutPunkt:
    """nltk, except that ``word_tokenize`` treats the text as one line and so needs no sentence model."""

    def __init__(self, nltk: Any) -> None:
        self._nltk = nltk

    def word_tokenize(self, text: str) -> list[str]:
        return self._nltk.word_tokenize(text, preserve_line=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nltk, name)
