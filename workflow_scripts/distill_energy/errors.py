"""Errors that a user can mend: one clear line, no traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message is one line that names the file, key or value."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))
