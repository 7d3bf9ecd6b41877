"""What judges are asked, by name and version. A changed wording is a new version; the old one stays."""

from __future__ import annotations

PAIRWISE_1 = """\
Two assistants answered the same request. Decide which answer serves the person who asked better: correct, \
helpful, complete, and no longer than it needs to be. The order in which the answers are shown means \
nothing.

[Request]
{{instruction}}

[Answer A]
{{first}}

[Answer B]
{{second}}

[End of the answers]
Reply with one letter and nothing else: A if answer A is better, B if answer B is better.
"""

TURNS_1 = """\
You grade one answer of an assistant in a conversation of several turns. What this conversation tests: \
{{rubric}}

Only the last answer is graded. The earlier ones are given and are taken as they are.

[Conversation so far]
{{history}}

[Last request]
{{request}}

[Answer to grade]
{{answer}}
{{reference}}
First judge in two or three sentences how well the answer does what is tested here. Then give a grade from 1 \
(fails entirely) to 10 (could not be better) in double square brackets on a line of its own, for example \
[[4]].
"""

#: The answer has an end of its own.
TURNS_2 = TURNS_1.replace("{{answer}}\n", "{{answer}}\n\n[End of the answer]\n")

PROMPTS: dict[tuple[str, str], str] = {
    ("pairwise", "1"): PAIRWISE_1,
    ("turns", "1"): TURNS_1,
    ("turns", "2"): TURNS_2,
}
