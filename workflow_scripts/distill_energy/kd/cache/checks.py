"""What must hold before a student learns from a cache."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

from ...errors import UserError
from ...models.fingerprint import differing, same_tokenizer
from .certificate import temperature_key

LOW_MASS = 0.9  # mean head mass below which a format without tail tokens is warned about
REFUSED_MASS = 0.5  # and below which it is refused


def head_mass_at(certificate: dict[str, Any], temperature: float) -> float | None:
    """Mean probability of the head at ``temperature``, interpolated in 1/T between the certified ones.

    Below the smallest certified T it is that one's (a lower bound), above the largest, the largest one's (an upper
    bound). None without a head.
    """
    known = sorted((1 / float(t), entry["mean"]) for t, entry in certificate["head_mass"].items())
    if not known:
        return None
    beta = 1 / temperature
    if beta <= known[0][0]:
        return known[0][1]
    for (b0, m0), (b1, m1) in itertools.pairwise(known):
        if b0 <= beta <= b1:
            return m0 + (m1 - m0) * (beta - b0) / (b1 - b0)
    return known[-1][1]


def check_temperature(
    certificate: dict[str, Any], method: str | None, temperature: float, threshold: float = REFUSED_MASS
) -> list[str]:
    """Refuse or warn, with numbers, when the cache cannot carry KD at ``temperature``.

    Raises UserError for ``topk`` when its head holds less than ``threshold`` of the mass. Returns the warnings, which
    are also issued as UserWarning. method: None takes the cache's own.
    """
    method = method or certificate["spec"]["method"]
    if not temperature > 0:
        raise UserError(f"temperature {temperature}: must be above 0")
    found: list[str] = []
    head = certificate["spec"]["head"]
    mass = head_mass_at(certificate, temperature)
    if method == "topk" and mass is not None:
        text = f"the top {head} tokens hold {mass:.1%} of the teacher's probability at T = {temperature:g}"
        if mass < threshold:
            raise UserError(
                f"logit cache: {text} (at least {threshold:.0%} is needed with method topk); use logits.method: "
                f"head_tail, a larger logits.head, or a lower temperature"
            )
        if mass < LOW_MASS:
            found.append(f"logit cache: {text}; the rest is known as one bucket only and the gradient is biased")
    cached = certificate["spec"]["lse_temperatures"]
    if method == "sampled" and temperature > 1:
        found.append(
            f"logit cache: method sampled draws at T = 1; at T = {temperature:g} its weights vary widely"
            f"{_audit(certificate, temperature)}; use head_tail"
        )
    if method != "topk" and not min(cached) <= temperature <= max(cached):
        found.append(
            f"logit cache: T = {temperature:g} lies outside the cached temperatures {cached[0]:g} to {cached[-1]:g}"
        )
    audit = certificate["audit"].get(temperature_key(temperature))
    if audit and method == "head_tail" and audit["gradient_cosine"] < 0.95:
        found.append(f"logit cache: T = {temperature:g}{_audit(certificate, temperature)}; raise logits.tail")
    for text in found:
        warnings.warn(text, stacklevel=2)
    return found


def _audit(certificate: dict[str, Any], temperature: float) -> str:
    audit = certificate["audit"].get(temperature_key(temperature))
    if not audit:
        return ""
    return f" (audited gradient cosine {audit['gradient_cosine']:.3f}, norm ratio {audit['norm_ratio']:.2f})"


def check_vocabulary(
    teacher_hash: str | None,
    teacher_size: int,
    student_hash: str | None,
    student_size: int,
    student: str = "student",
    tokens: int | None = None,
) -> None:
    """Teacher and student must share their token ids. Raises UserError.

    hashes: of the tokenizers (``models`` gives them; None: not known, then only sizes are compared); sizes: number of
    rows of the output layers; tokens: of the tokenizer they share. Layers are padded to round sizes, so with one
    tokenizer they may differ in rows beyond its tokens (152,064 and 151,936 in one family): no text holds those. A
    student with fewer rows than the tokenizer has tokens is refused.
    """
    if teacher_hash and student_hash and not same_tokenizer(teacher_hash, student_hash):
        theirs, ours = differing(teacher_hash, student_hash)
        raise UserError(
            f"vocabulary mismatch: the tokenizer of {student} ({ours}) is not the teacher's "
            f"({theirs}); a logit cache serves students of the same tokenizer only"
        )
    if student_size == teacher_size:
        return
    same = bool(teacher_hash and student_hash)
    if not same or (student_size < teacher_size and (tokens is None or min(student_size, teacher_size) < tokens)):
        raise UserError(
            f"vocabulary mismatch: {student} has {student_size:,} output tokens, the teacher's cache {teacher_size:,}"
            + (f", their tokenizer {tokens:,}" if tokens else "")
        )
