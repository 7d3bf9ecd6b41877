"""Packing the rows of one example into three small binaries, and back. numpy and pyarrow's zstd.

Each binary is one zstd frame, cut into blocks of one kind of byte, so that each kind has its own Huffman table and what
cannot be compressed is stored raw. Planes of the head are rank-major (all tokens' rank 0, then rank 1, …), those of the
ragged tail token-major:

* ``head``: id bytes, low plane, middle plane, and bits above 16; then differences of successive value codes
  (16 bits at rank 1, where a confident token's gap is large; ``value_bits`` after), grouped by rank;
* ``tail``: number of distinct tokens of each row; gaps between ascending ids, in byte planes; draws; value codes
  relative to the last of the head;
* ``lse``: 16-bit fixed point, low plane, high plane.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from .rows import LSE_LOW, LSE_STEP, EncodedRows, PackedRows, TeacherRows

if TYPE_CHECKING:
    from .spec import CacheSpec

_GROUPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # ranks at which a new block of value differences starts


def _compress(blocks: list[np.ndarray]) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    stream = pa.CompressedOutputStream(sink, "zstd")
    for block in blocks:
        if block.size:
            stream.write(np.ascontiguousarray(block).view(np.uint8).data)
            stream.flush()
    stream.close()
    return sink.getvalue().to_pybytes()


def _decompress(blob, size: int) -> np.ndarray:
    if not size:
        return np.empty(0, np.uint8)
    return np.frombuffer(_codec().decompress(blob, size), np.uint8)


@functools.cache
def _codec():
    import pyarrow as pa

    return pa.Codec("zstd")


def _planes(values: np.ndarray, n_bytes: int) -> list[np.ndarray]:
    """Byte planes, low first, of non-negative integers."""
    values = values.astype(np.uint32)
    return [((values >> (8 * i)) & 255).astype(np.uint8) for i in range(n_bytes)]


def _join(planes: list[np.ndarray], dtype=np.int32) -> np.ndarray:
    out = planes[0].astype(dtype)
    for i, plane in enumerate(planes[1:], 1):
        out |= plane.astype(dtype) << (8 * i)
    return out


def _id_bytes(spec: "CacheSpec") -> int:
    return max(1, ((spec.vocab_size - 1).bit_length() + 7) // 8)


def _value_bytes(spec: "CacheSpec") -> int:
    return spec.value_bits // 8


def pack(rows: EncodedRows, spec: "CacheSpec") -> PackedRows:
    """The binaries of one example's rows."""
    n, k = len(rows), spec.head
    id_bytes, value_bytes = _id_bytes(spec), _value_bytes(spec)
    out = PackedRows(n, int((rows.tail_ids >= 0).sum()), stats=rows.stats)
    if n == 0:
        return out
    if k:
        blocks = _planes(rows.head_ids.T, min(id_bytes, 2))
        if id_bytes > 2:
            blocks.append(_high_bits(rows.head_ids, spec))
        steps = np.diff(rows.head_codes, axis=1).T  # [K − 1, n]
        blocks += _planes(steps[:1], 2)
        for start, stop in zip(_GROUPS, (*_GROUPS[1:], k), strict=True):
            blocks += _planes(steps[start : min(stop, k)], value_bytes)
        out.head = _compress(blocks)
    if spec.tail:
        present = rows.tail_ids >= 0
        number = present.sum(1)
        gaps = np.diff(rows.tail_ids, axis=1, prepend=-1) - 1
        low = rows.head_codes[:, -1:] if k else 0
        blocks = [*_planes(number, 2), *_planes(gaps[present], id_bytes)]
        blocks += _planes(rows.tail_counts[present] - 1, 2)
        blocks += _planes((rows.tail_codes - low)[present], value_bytes)
        out.tail = _compress(blocks)
    out.lse = _compress(_planes(rows.lse_codes.T, 2))
    return out


def _high_bits(ids: np.ndarray, spec: "CacheSpec") -> np.ndarray:
    """Bits above 16 of head ids, packed."""
    bits = (spec.vocab_size - 1).bit_length() - 16
    high = (ids.T >> 16).astype(np.uint8)
    return np.concatenate([np.packbits((high >> b) & 1) for b in range(bits)])


def _unhigh_bits(packed: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    size = shape[0] * shape[1]
    step = (size + 7) // 8
    high = np.zeros(size, np.int32)
    for b in range(bits):
        high += np.unpackbits(packed[b * step : (b + 1) * step], count=size) * np.int32(1 << (16 + b))
    return high.reshape(shape)


def unpack(packed: PackedRows, spec: "CacheSpec") -> TeacherRows:
    """Rows of one example. Raises ValueError or OSError if the binaries do not fit their token counts."""
    n, tail_total = packed.tokens, packed.tail_total
    k, n_lse = spec.head, len(spec.lse_temperatures)
    id_bytes, value_bytes = _id_bytes(spec), _value_bytes(spec)
    step = np.float32(spec.value_step)
    if n == 0:
        empty = np.empty((0, k), np.int32)
        return TeacherRows(
            empty, empty.astype(np.float32), np.empty((0, 0), np.int16), np.empty((0, n_lse), np.float32), spec
        )
    lse = _decompress(packed.lse, 2 * n * n_lse).reshape(2, n_lse, n)
    codes = _join(list(lse)).T
    tail_lse = np.where(codes == 0, -np.inf, codes * LSE_STEP + LSE_LOW).astype(np.float32)

    width = 0
    if spec.tail:
        size = 2 * n + tail_total * (id_bytes + 2 + value_bytes)
        cursor = _Cursor(_decompress(packed.tail, size))
        number = _join(cursor.planes(n, 2))
        width = int(number.max())
    ids = np.empty((n, k + width), np.int32)
    values = np.empty((n, k + width), np.float32)
    counts = np.zeros((n, width), np.int16)
    last = np.zeros(n, np.int32)
    if k:
        head_ids, steps = _unpack_head(packed, n, spec)
        np.cumsum(steps, axis=0, out=steps)  # rank-major: whole rows are added
        ids[:, :k] = head_ids.T
        np.multiply(steps.T, -step, out=values[:, :k], casting="unsafe")
        last = steps[-1]
    if width:
        tail_ids = _join(cursor.planes(tail_total, id_bytes)) + 1
        counts = _join(cursor.planes(tail_total, 2), np.int16) + np.int16(1)
        codes = _join(cursor.planes(tail_total, value_bytes))
        if tail_total == width * n:  # every row has as many: no mask needed
            tail_ids, counts, codes = (a.reshape(n, width) for a in (tail_ids, counts, codes))
        else:
            mask = np.arange(width)[None, :] < number[:, None]
            flat, (tail_ids, counts, codes) = (
                (tail_ids, counts, codes),
                (np.zeros((n, width), a.dtype) for a in (tail_ids, counts, codes)),
            )
            for target, source in zip((tail_ids, counts, codes), flat, strict=True):
                target[mask] = source
        np.cumsum(tail_ids, axis=1, out=ids[:, k:])
        ids[:, k:] -= 1
        if tail_total != width * n:
            ids[:, k:][~mask] = 0
        codes += last[:, None]
        np.multiply(codes, -step, out=values[:, k:], casting="unsafe")
    return TeacherRows(ids, values, counts, tail_lse, spec)


def _unpack_head(packed: PackedRows, n: int, spec: "CacheSpec") -> tuple[np.ndarray, np.ndarray]:
    """(ids, differences of value codes), both [K, n]."""
    k, id_bytes, value_bytes = spec.head, _id_bytes(spec), _value_bytes(spec)
    bits = max(0, (spec.vocab_size - 1).bit_length() - 16)
    high_size = bits * ((n * k + 7) // 8)
    first, after = min(k - 1, 1) * n, max(k - 2, 0) * n
    size = k * n * min(id_bytes, 2) + high_size + 2 * first + value_bytes * after
    head = _Cursor(_decompress(packed.head, size))
    ids = _join([p.reshape(k, n) for p in head.planes(k * n, min(id_bytes, 2))])
    if bits:
        ids |= _unhigh_bits(head.take(high_size), bits, (k, n))
    steps = np.zeros((k, n), np.int32)
    if k > 1:
        steps[1] = _join(head.planes(n, 2))
    if value_bytes == 1:
        steps[2:] = head.take(after).reshape(max(k - 2, 0), n)
    else:
        for start, stop in zip(_GROUPS, (*_GROUPS[1:], k), strict=True):
            group = slice(start + 1, min(stop, k) + 1)
            rows = len(range(k)[group])
            steps[group] = _join([p.reshape(rows, n) for p in head.planes(rows * n, value_bytes)])
    return ids, steps


class _Cursor:
    """Takes consecutive pieces of a byte array."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> np.ndarray:
        piece = self.data[self.at : self.at + size]
        if len(piece) != size:
            raise ValueError("payload is shorter than its token count says")
        self.at += size
        return piece

    def planes(self, size: int, n_bytes: int) -> list[np.ndarray]:
        return [self.take(size) for _ in range(n_bytes)]
