"""Judges: any OpenAI-compatible endpoint, or a local model by log-probabilities (a proxy, outside Q).

A local judge's energy is measured in the phase ``judge``. A remote one's is unknown and said so: what this host spends
while it waits is booked in the phase ``judge_wait`` and is not the judge's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.evaluation import Judge
from ..errors import UserError
from ..models.sources import load_model, load_tokenizer
from .choice import score_continuations, softmax
from .prompts import PROMPTS
from .session import Session

PARALLEL = 8  # requests to an endpoint at a time
OPENAI_API = "https://api.openai.com/v1"
RETRIES = 4
TIMEOUT_S = 120.0
ASKS = 3  # times a judge is asked for a reply that can be read
REFUSED = (400, 413, 422)
RETRY_TEMPERATURE = 0.7  # of a judge that answered at 0 what cannot be read: at 0 it would say the same again
REMOTE = "the judge is an endpoint: its energy is not measured here"


@dataclass(frozen=True)
class Reply:
    """An endpoint's answer; ``top``: log-probabilities (nats) of the first token's best candidates, if given."""

    text: str
    top: dict[str, float]


class SameHost(urllib.request.HTTPRedirectHandler):
    """Follows no redirect to another host or to plain HTTP: the key goes with the request."""

    def redirect_request(self, request, handle, code, message, headers, url):
        before, after = urllib.parse.urlsplit(request.full_url), urllib.parse.urlsplit(url)
        if (before.scheme, before.netloc) != (after.scheme, after.netloc):
            place = f"{after.scheme}://{after.hostname}"
            raise urllib.error.URLError(f"redirected to another host ({place}); name it as base_url")
        return super().redirect_request(request, handle, code, message, headers, url)


class Endpoint:
    """Chat completions of an OpenAI-compatible server. UserError for a missing or refused key and where no server
    answers, RuntimeError where it refuses a request."""

    def __init__(self, params: Judge, pause_s: float = 1.0) -> None:
        self.model = params.model
        base = params.base_url or OPENAI_API
        self.url = base.rstrip("/") + "/chat/completions"
        self.key_name = params.api_key_env
        self.key = os.environ.get(self.key_name)
        self._opener = urllib.request.build_opener(SameHost())
        if not self.key and not params.base_url:
            raise UserError(f"evaluation: judge {self.model}: environment variable {params.api_key_env} is not set")
        self.temperature = params.temperature
        self.pause_s = pause_s
        self.usage = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}

    def ask(self, prompt: str, *, max_tokens: int, temperature: float, seed: int, logprobs: bool = False) -> Reply:
        """One user turn, one answer. Busy or unreachable servers are asked again, four times in all."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": 5}
        answer = self._post(json.dumps(body).encode("utf-8"))
        usage = answer.get("usage") or {}
        self.usage["requests"] += 1
        for kind in ("prompt_tokens", "completion_tokens"):
            self.usage[kind] += usage.get(kind) or 0
        try:
            choice = answer["choices"][0]
            text = self._scrubbed(choice["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise RuntimeError(f"judge {self.model}: the answer has no choices[0].message.content") from None
        tokens = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
        return Reply(text, {item["token"]: item["logprob"] for item in tokens})

    def greet(self) -> None:
        """Ask for one token: whether there is a server, whether it takes the key and whether it knows the model.
        Raises UserError."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
        try:
            self._post(json.dumps(body).encode("utf-8"), tries=2, timeout_s=20.0)
        except RuntimeError as error:
            raise UserError(str(error)) from None

    def many(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """``work`` on each item, several requests at a time, results in order."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            return list(pool.map(work, items))

    def _post(self, body: bytes, tries: int = RETRIES, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        problem = ""
        for attempt in range(tries):
            if attempt:
                time.sleep(self.pause_s * 2 ** (attempt - 1))
            request = urllib.request.Request(self.url, body, headers)
            try:
                with self._opener.open(request, timeout=timeout_s) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read(300).decode('utf-8', 'replace')}"
                if error.code in REFUSED:  # of this request; another server would say the same
                    raise RuntimeError(f"judge {self.model} at {self.url}: {self._scrubbed(problem)}") from None
                if error.code in (401, 403):
                    what = f"refuses the key in {self.key_name}" if self.key else f"wants a key: set {self.key_name}"
                    problem = f"{what} ({problem})"
                if error.code not in (408, 409, 429) and error.code < 500:
                    break
            except (urllib.error.URLError, OSError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
        # Not the benchmark's failure, which would be final: the stage ends, and goes on here when the judge is back.
        raise UserError(f"judge {self.model} at {self.url}: {self._scrubbed(problem)}")

    def _scrubbed(self, text: str) -> str:
        """A text that enters records and logs, without the key: servers echo what they were sent."""
        return text.replace(self.key, "[key]") if self.key else text


class LocalModel:
    """An in-process model asked for the likelihood of short answers."""

    def __init__(self, params: Judge, session: Session) -> None:
        self.model = params.model
        path = Path(self.model).expanduser()
        spec = {"source": "folder", "path": str(path)} if path.is_dir() else {"source": "hub", "id": self.model}
        model = load_model(spec, {}, session.dtype)
        self.session = Session(
            model,
            load_tokenizer(spec, {}),
            session.meter,
            session.log,
            {},
            "judge",
            session.dtype,
            operations=session.operations,
        )

    def shares(self, prompts: Sequence[str], answers: Sequence[str]) -> list[list[float]]:
        """For each prompt the probability of each of ``answers`` as the answer's beginning, among them all."""
        session = self.session
        for token in filter(lambda token: len(token) > 1, session.tokenizer.all_special_tokens):  # the judge's own
            prompts = [prompt.replace(token, f"{token[0]} {token[1:]}") for prompt in prompts]
        options = [session.encode(answer) for answer in answers]
        ids = [session.prompt_ids(prompt) for prompt in prompts]
        scored = score_continuations(session, ids, [options] * len(ids))
        return [softmax([value for value, _ in row]) for row in scored]


@contextlib.contextmanager
def opened(session: Session, params: Judge) -> Iterator[Endpoint | LocalModel]:
    """The judge of a benchmark, inside the phase that books its energy."""
    if params.kind == "openai":
        endpoint = Endpoint(params)
        with session.phase("judge_wait"):
            yield endpoint
        return
    with session.phase("judge"):
        yield LocalModel(params, session)


def facts(session: Session, params: Judge, judge: Endpoint | LocalModel) -> dict[str, Any]:
    """Who judged, by which prompt, at what cost. Unknown joules are None with a reason."""
    found: dict[str, Any] = {
        "judge": params.model,
        "judge_kind": params.kind,
        "judge_prompt_version": params.prompt_version,
    }
    if isinstance(judge, Endpoint):
        found |= {f"judge_{key}": value for key, value in judge.usage.items()}
        return found | {"judge_joules": None, "judge_joules_reason": REMOTE}
    windows = session.spent["judge"]
    joules = windows[-1].joules
    found["judge_joules"] = joules
    if joules is None:
        found["judge_joules_reason"] = windows[-1].reason
    return found


def judged(params: Judge, verdicts: Sequence[float | None], facts: dict[str, Any]) -> list[int]:
    """Indices of the verdicts that could be read; the others are counted in ``facts`` and are in no score.

    Raises RuntimeError if there is none.
    """
    kept = [i for i, verdict in enumerate(verdicts) if verdict is not None]
    facts["judge_unreadable"] = len(verdicts) - len(kept)
    if not kept:
        raise RuntimeError(f"judge {params.model}: no reply can be read, each asked for {ASKS} times")
    return kept


def template(name: str, version: str) -> str:
    """A judge's prompt. Raises UserError naming the version if there is none."""
    if (name, version) not in PROMPTS:
        known = sorted(v for n, v in PROMPTS if n == name)
        raise UserError(f"evaluation: judge.prompt_version {version!r} is not one of {', '.join(known)}")
    return PROMPTS[name, version]


#: What chat templates make of turns: a tokenizer reads these in a user's text as the control tokens that they spell.
_CONTROL = re.compile(
    r"<(?=[|｜][^<>\n]{1,60}[|｜]>)|<(?=/?s>|(?:start|end)_of_turn>|[be]os>|</?SYS>|/SYS>)|\[(?=/?INST\]|/?SYSTEM_PROMPT\])",
    re.I,
)
#: A heading that a caller adds to a prompt.
REFERENCE = "Reference answer"
_HEADINGS = sorted({REFERENCE, *(name for text in PROMPTS.values() for name in re.findall(r"^\[(.+)\]$", text, re.M))})
_HEADING = re.compile(rf"\[(?=\s*(?:{'|'.join(map(re.escape, _HEADINGS))})\s*\])", re.I)


def quoted(text: str) -> str:
    """A text of others as it may stand in a judge's prompt: no control token, no heading of a prompt's own, no verdict.

    What would be read as one gets a space behind its first bracket; everything else stays.
    """
    text = _CONTROL.sub(lambda found: f"{found[0]} ", text)
    text = _HEADING.sub("[ ", text)
    return re.sub(r"\[(?=\[\s*(?:\d+(?:\.\d*)?|\w)\s*\]\])", "[ ", text)


def fill(text: str, **values: str) -> str:
    """Replace ``{{name}}`` by its value; braces in the values stay as they are."""
    for name in values:
        if "{{" + name + "}}" not in text:
            raise ValueError(f"the prompt has no {{{{{name}}}}}")
    parts = text.split("{{")
    out = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition("}}")
        out.append(values[name] + rest)
    return "".join(out)


#: Verdicts in so many words; {letter} is one of the two.
VERDICTS = (
    r"\[\[\s*{letter}\s*\]\]",
    r"(?<!\w){letter} (?:is|was) (?:\w+ ){{0,2}}(?:better|best|preferred|preferable|stronger|superior)(?!\w)",
    r"(?:prefer|choose|pick|better|best|verdict|winner|answer)(?: one)?(?: is|:| would be)*\W+"
    r"(?:[Aa]nswer |[Oo]utput )?{letter}\W*$",
)


def preference(reply: Reply, first: str = "A", second: str = "B") -> float | None:
    """Probability that the first answer is preferred, from log-probabilities where given, else from the text.

    The text is one of the letters, or gives its verdict in so many words. None where it names neither, or both.
    """
    weights = {first: 0.0, second: 0.0}
    for token, value in reply.top.items():
        if token.strip() in weights:
            weights[token.strip()] += math.exp(value)
    if sum(weights.values()) > 0:
        return weights[first] / sum(weights.values())
    text = reply.text.strip()
    for pattern in (r"\W*(?:[Aa]nswer|[Oo]utput)?\W*{letter}\W*\Z", *VERDICTS):
        found = re.match if pattern.endswith("Z") else re.search
        named = [letter for letter in weights if found(pattern.format(letter=re.escape(letter)), text, re.M)]
        if named:
            return {first: 1.0, second: 0.0}[named[0]] if len(named) == 1 else None
    return None
