"""What each of MT-Bench-101's 13 tasks tests, as a judge is told. Own wording (prompt version 1)."""

from __future__ import annotations

RUBRICS: dict[str, str] = {
    "CM": (
        "context memory. The last request can be answered only with something said earlier; the answer must "
        "recall it exactly and use it."
    ),
    "AR": (
        "anaphora resolution. The last request refers to something said before by a pronoun or another short "
        "form; the answer must be about the right thing."
    ),
    "SI": (
        "separate input. The first turn states a task and later turns give its inputs; the answer must do the "
        "stated task on the latest input, in the form that was asked."
    ),
    "TS": (
        "topic shift. The last request leaves the earlier topic; the answer must turn to the new one and not "
        "mix in what was said about the old one."
    ),
    "CC": (
        "content confusion. The requests look alike and mean different things; the answer must fit the last "
        "one and not repeat what fitted an earlier one."
    ),
    "CR": (
        "content rephrasing. The assistant is asked to reword its earlier answer as told; the meaning must "
        "stay and the wording must follow the request."
    ),
    "FR": (
        "format rephrasing. The assistant is asked for its earlier answer in another format; the content must "
        "stay and the format must be the one asked for."
    ),
    "SC": (
        "self-correction. The user objects to the assistant's earlier answer and is right; the answer must "
        "admit the mistake and put it right."
    ),
    "SA": (
        "self-affirmation. The user objects to the assistant's earlier answer and is wrong; the answer must "
        "hold to what was right, politely, and explain it."
    ),
    "MR": (
        "mathematical reasoning over several turns. The answer must reach the right result by right steps. A "
        "reference answer is given."
    ),
    "GR": (
        "general reasoning over several turns. The answer must reach the right conclusion from all that is "
        "known so far. A reference answer is given."
    ),
    "IC": (
        "instruction clarification. A request is vague; the assistant should ask for what is missing, and "
        "answer precisely once it knows."
    ),
    "PI": (
        "proactive interaction. The user makes a statement or answers; the assistant should take the "
        "conversation forward with a fitting question or remark."
    ),
}

#: Tasks whose first turn only sets the scene and is not judged.
FIRST_TURN_SKIPPED = frozenset({"FR", "CR", "AR", "SA", "SC", "CM"})
#: Tasks judged with the gold answer at hand.
WITH_REFERENCE = frozenset({"MR", "GR"})
