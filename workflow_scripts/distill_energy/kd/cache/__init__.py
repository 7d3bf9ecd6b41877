"""The logit cache: what of the teacher's distribution is kept, how it is stored, and how exact it is.

Light to import: numpy, pyarrow and torch are imported where they are used.
"""

from __future__ import annotations

import importlib

_WHERE = {
    "CacheSpec": "spec",
    "EncodedRows": "rows",
    "PackedRows": "rows",
    "TeacherRows": "rows",
    "encode_rows": "encode",
    "uniforms": "encode",
    "pack": "codec",
    "unpack": "codec",
    "CacheWriter": "writer",
    "plan_shards": "writer",
    "CacheReader": "reader",
    "check_temperature": "checks",
    "check_vocabulary": "checks",
    "audit_batch": "audit",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(name)
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
