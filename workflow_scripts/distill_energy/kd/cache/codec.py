"""Packing the rows of one example into one small binary, and back. numpy, torch's running sum and pyarrow's zstd.

The binary is one zstd frame, cut into blocks of one kind of byte, so that each kind has its own Huffman table and what
cannot be compressed is stored raw. Planes of the head are rank-major (all tokens' rank 0, then rank 1, …), those of the
ragged tail token-major. In this order:

* log-sum-exps: 16-bit fixed point, low plane, high plane;
* head: ids, low plane, high plane, and bits above 16; then differences of successive value codes (16 bits at
  rank 1, where a confident token's gap is large; ``value_bits`` after), grouped by rank;
* tail: gaps between ascending ids, in two byte planes and bits above 16; number of distinct tokens of each row and
  draws of each token (modulo 256 against those that its value leads to expect), both left out where every draw found
  a token of its own; value codes relative to the last of the head.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from .rows import LSE_LOW, LSE_STEP, EncodedRows, PackedRows, TeacherRows

if TYPE_CHECKING:
    from .spec import CacheSpec

_GROUPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # ranks at which a new block of value differences starts


def _compress(blocks: list[np.ndarray]) -> bytes:
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
    return pa.Codec("zstd")


def _planes(values: np.ndarray, n_bytes: int) -> list[np.ndarray]:
    """Byte planes, low first, of non-negative integers."""
    values = values.astype(np.uint32)
    return [((values >> (8 * i)) & 255).astype(np.uint8) for i in range(n_bytes)]


def _join(planes: list[np.ndarray]) -> np.ndarray:
    """Unsigned integers from at most two byte planes, low first."""
    if len(planes) == 1:
        return planes[0]
    out = planes[1].astype(np.uint16)
    out <<= 8
    out |= planes[0]
    return out


def _id_bytes(spec: "CacheSpec") -> int:
    """Byte planes of a token id or a gap; what is above is kept by bits."""
    return 1 if spec.vocab_size <= 256 else 2


def _count_bytes(spec: "CacheSpec") -> int:
    """Of a number of distinct tokens, or of draws: at most ``tail``."""
    return 1 if spec.tail < 256 else 2


def _expected_draws(codes: np.ndarray, spec: "CacheSpec") -> np.ndarray:
    """Draws of a token of this value, at least 1, where the value tells: without a head it is log p at T = 1."""
    if spec.head or spec.proposal_temperatures != (1.0,):
        return np.ones(1, np.int32)
    return np.rint(spec.tail * np.exp(-spec.value_step * codes.astype(np.float64))).clip(1).astype(np.int32)


def _value_bytes(spec: "CacheSpec") -> int:
    return spec.value_bits // 8


def pack(rows: EncodedRows, spec: "CacheSpec") -> PackedRows:
    """The binary of one example's rows."""
    n, k = len(rows), spec.head
    id_bytes, value_bytes = _id_bytes(spec), _value_bytes(spec)
    out = PackedRows(n, int((rows.tail_ids >= 0).sum()), stats=rows.stats)
    if n == 0:
        return out
    blocks = _planes(rows.lse_codes.T, 2)
    if k:
        blocks += _planes(rows.head_ids.T, id_bytes)
        blocks += _high_bits(rows.head_ids.T, spec)
        steps = np.diff(rows.head_codes, axis=1).T  # [K − 1, n]
        blocks += _planes(steps[:1], 2)
        for start, stop in zip(_GROUPS, (*_GROUPS[1:], k), strict=True):
            blocks += _planes(steps[start : min(stop, k)], value_bytes)
    if spec.tail:
        present = rows.tail_ids >= 0
        gaps = (np.diff(rows.tail_ids, axis=1, prepend=-1) - 1)[present]
        blocks += [*_planes(gaps, id_bytes), *_high_bits(gaps, spec)]
        if out.tail_total < n * spec.tail:
            draws = rows.tail_counts[present] - _expected_draws(rows.tail_codes[present], spec)
            blocks += [*_planes(present.sum(1), _count_bytes(spec)), *_planes(draws, _count_bytes(spec))]
        blocks += _planes(rows.tail_codes[present], value_bytes)
    out.payload = _compress(blocks)
    return out


def _high_bits(values: np.ndarray, spec: "CacheSpec") -> list[np.ndarray]:
    """Each bit above 16 of token ids or gaps between them, packed: most are 0."""
    high = (values >> 16).astype(np.uint8)
    return [np.packbits((high >> bit) & 1) for bit in range(_n_high_bits(spec))]


def _n_high_bits(spec: "CacheSpec") -> int:
    return max(0, (spec.vocab_size - 1).bit_length() - 16)


def expand(packed: PackedRows, spec: "CacheSpec") -> np.ndarray:
    """The binary's bytes. Raises ValueError or OSError if it does not fit its token counts."""
    n = packed.tokens
    size = 2 * n * len(spec.lse_temperatures) + _head_size(n, spec) + _tail_size(n, packed.tail_total, spec)
    planes = _decompress(packed.payload, size)
    if len(planes) != size:
        raise ValueError("payload is shorter than its token count says")
    return planes


def unpack(packed: PackedRows, spec: "CacheSpec") -> TeacherRows:
    """Rows of one example. Raises ValueError or OSError if its binary does not fit its token counts."""
    return unpack_batch([packed], spec)


def unpack_batch(packed: Sequence[PackedRows], spec: "CacheSpec") -> TeacherRows:
    """Rows of several examples, one after another; together, since short ones cost calls and not bytes.

    Raises ValueError or OSError if a binary does not fit its token counts.
    """
    packed = [p for p in packed if p.tokens]
    if not packed:
        k, lse = spec.head, len(spec.lse_temperatures)
        ids, values = np.empty((0, k), np.int32), np.empty((0, k), np.float32)
        return TeacherRows(ids, values, np.empty((0, 0), np.int16), np.empty((0, lse), np.float32), spec)
    planes = _Planes([expand(p, spec) for p in packed], [p.tokens for p in packed])
    n, k = sum(planes.tokens), spec.head
    codes = planes.by_rank(len(spec.lse_temperatures), 2).T
    tail_lse = np.where(codes == 0, -np.inf, codes * LSE_STEP + LSE_LOW).astype(np.float32)
    if k:
        head_ids, head_values = _unpack_head(planes, spec)
    if not spec.tail:
        return TeacherRows(head_ids, head_values, np.zeros((n, 0), np.int16), tail_lse, spec)
    tail_ids, draws, codes = _unpack_tail(planes, [p.tail_total for p in packed], spec)
    ids = np.empty((n, k + tail_ids.shape[1]), np.int32)
    values = np.empty(ids.shape, np.float32)
    ids[:, k:] = tail_ids
    np.multiply(codes, -np.float32(spec.tail_step), out=values[:, k:])
    if k:
        ids[:, :k], values[:, :k] = head_ids, head_values
        values[:, k:] += head_values[:, -1:]
    return TeacherRows(ids, values, draws, tail_lse, spec)


def _head_size(n: int, spec: "CacheSpec") -> int:
    k = spec.head
    high = _n_high_bits(spec) * ((n * k + 7) // 8)
    values = 2 * min(max(k - 1, 0), 1) + _value_bytes(spec) * max(k - 2, 0)
    return n * (k * _id_bytes(spec) + values) + high


def _tail_size(n: int, total: int, spec: "CacheSpec") -> int:
    counts = 0 if total == n * spec.tail else _count_bytes(spec) * (n + total)
    high = _n_high_bits(spec) * ((total + 7) // 8)
    return total * (_id_bytes(spec) + _value_bytes(spec)) + high + counts


def _unpack_head(planes: "_Planes", spec: "CacheSpec") -> tuple[np.ndarray, np.ndarray]:
    """(ids int32, values float32) [n, K], values in nats below the first."""
    k, value_bytes, n = spec.head, _value_bytes(spec), sum(planes.tokens)
    ids = planes.by_rank(k, _id_bytes(spec)).T.astype(np.int32, order="C")
    for bit in range(_n_high_bits(spec)):
        ids += planes.bits([k * n for n in planes.tokens], k).T * np.int32(1 << (16 + bit))
    steps = np.zeros((n, k), np.float32)  # float32 holds the sums exactly: they are below 2^24
    if k > 1:
        steps[:, 1:2] = planes.by_rank(1, 2).T
    if value_bytes == 1:
        steps[:, 2:] = planes.by_rank(max(k - 2, 0), 1).T
    else:
        for start, stop in zip(_GROUPS, (*_GROUPS[1:], k), strict=True):
            group = slice(start + 1, min(stop, k) + 1)
            steps[:, group] = planes.by_rank(len(range(k)[group]), value_bytes).T
    # torch's running sum takes a third of numpy's time.
    values = torch.cumsum(torch.from_numpy(steps), 1).numpy()
    values *= -np.float32(spec.value_step)
    return ids, values


def _unpack_tail(planes: "_Planes", totals: list[int], spec: "CacheSpec") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids int32, draws int16, value codes) [n, D], padded with token 0 of no draws."""
    id_bytes, value_bytes, count_bytes = _id_bytes(spec), _value_bytes(spec), _count_bytes(spec)
    gaps = planes.flat(totals, id_bytes).astype(np.int32)
    for bit in range(_n_high_bits(spec)):
        high = planes.bits(totals)
        if high.any():
            gaps += high * np.int32(1 << (16 + bit))
    gaps += 1
    full = [total == n * spec.tail for total, n in zip(totals, planes.tokens, strict=True)]
    if all(full):  # every draw found a token of its own
        shape = (sum(planes.tokens), spec.tail)
        gaps, draws = gaps.reshape(shape), np.ones(shape, np.int16)
        codes = planes.flat(totals, value_bytes).reshape(shape)
        present = None
    else:
        number = np.full(sum(planes.tokens), spec.tail)
        draws = np.ones(sum(totals), np.int16)
        counted = ~np.repeat(full, planes.tokens), ~np.repeat(full, totals)  # rows and tokens of the other examples
        number[counted[0]] = planes.flat(np.where(full, 0, planes.tokens), count_bytes)
        drawn = planes.flat(np.where(full, 0, totals), count_bytes)
        codes = planes.flat(totals, value_bytes)
        draws[counted[1]] = (drawn + _expected_draws(codes[counted[1]], spec)) & (256**count_bytes - 1)
        shape = (len(number), int(number.max()))
        present = np.arange(shape[1]) < number[:, None]

        def spread(values: np.ndarray, dtype) -> np.ndarray:
            out = np.zeros(shape, dtype)
            out[present] = values
            return out

        gaps, codes, draws = spread(gaps, np.int32), spread(codes, np.int32), spread(draws, np.int16)
    ids = torch.cumsum(torch.from_numpy(gaps), 1, dtype=torch.int32).numpy()
    ids -= 1
    if present is not None:
        ids *= present
    return ids, draws, codes


class _Planes:
    """Takes consecutive planes from the bytes of several examples at once."""

    def __init__(self, data: list[np.ndarray], tokens: list[int]) -> None:
        self.data, self.tokens, self.at = data, tokens, [0] * len(data)

    def _take(self, sizes: Sequence[int]) -> list[np.ndarray]:
        pieces = []
        for i, size in enumerate(sizes):
            pieces.append(self.data[i][self.at[i] : self.at[i] + size])
            self.at[i] += size
        return pieces

    def by_rank(self, ranks: int, n_bytes: int) -> np.ndarray:
        """[ranks, n] unsigned integers of ``n_bytes``, for all tokens."""
        if not ranks:
            return np.empty((0, sum(self.tokens)), np.uint8)
        planes = [
            _concatenate([p.reshape(ranks, -1) for p in self._take([ranks * n for n in self.tokens])])
            for _ in range(n_bytes)
        ]
        return _join(planes)

    def bits(self, sizes: list[int], ranks: int | None = None) -> np.ndarray:
        """0 or 1, ``sizes`` of them from each example; with ``ranks`` as [ranks, n]."""
        shape = (-1,) if ranks is None else (ranks, -1)
        pieces = self._take([(size + 7) // 8 for size in sizes])
        return _concatenate(
            [np.unpackbits(p, count=size).reshape(shape) for p, size in zip(pieces, sizes, strict=True)]
        )

    def flat(self, sizes: Sequence[int], n_bytes: int) -> np.ndarray:
        """Unsigned integers of ``n_bytes``, ``sizes`` of them from each example."""
        return _join([_concatenate(self._take(sizes)) for _ in range(n_bytes)])


def _concatenate(pieces: list[np.ndarray]) -> np.ndarray:
    """Along the last axis."""
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces, axis=-1) if pieces else np.empty(0, np.uint8)
