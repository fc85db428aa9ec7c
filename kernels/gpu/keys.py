"""Order by integers: fp32 entries become int32 keys, on which selection compares and counts.

Keys are monotone in the entry, -0 and +0 share one, and every NaN has the largest. Selection finds the k-th largest
key by bisection and compacts by a running count: sums of integers, so the order of addition never shows, and no sort.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**31))
"""Key of padding: below that of -inf."""

HIGHEST = tl.constexpr(2**31 - 1)
"""Key of every NaN; as a mask, all bits but the sign."""

INFINITE = tl.constexpr(0x7F800000)
"""Key, and bits, of infinity."""


@triton.jit
def row_start(row, stride):
    """Offset of a row's first element, in 64 bits: rows x columns may pass 2**31."""
    return row.to(tl.int64) * stride


@triton.jit
def entries(pre, bias, mask, columns, inside):
    """Entries of the row at `pre` in fp32, plus `bias` where given; -inf where `mask` is given and false."""
    values = tl.load(pre + columns, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        values += tl.load(bias + columns, mask=inside, other=0.0)
    if mask is not None:
        values = tl.where(tl.load(mask + columns, mask=inside, other=0) != 0, values, float("-inf"))
    return values


@triton.jit
def order_key(x):
    """int32 key of an fp32 entry: its magnitude's bits with its sign, which joins the zeros; NaN on top."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & HIGHEST
    return tl.where(magnitude > INFINITE, HIGHEST, tl.where(bits < 0, -magnitude, magnitude))


@triton.jit
def key_value(key):
    """The fp32 entry of a key: the inverse of `order_key`, with +0 for both zeros."""
    magnitude = tl.where(key < 0, -key, key).to(tl.float32, bitcast=True)
    return tl.where(key < 0, -magnitude, magnitude)


@triton.jit
def kth_key(keys, k):
    """A key that k or more of `keys` reach, with fewer than k above it: bisection by counting, <= 32 steps.

    Ends early where exactly k keys reach the middle, which is then as good a boundary as the k-th key itself.
    """
    low = tl.min(tl.where(keys == LOWEST, HIGHEST, keys))
    high = tl.max(keys)
    while low < high:  # pyright: ignore[reportOperatorIssue]
        # The mean rounded up; low + high would overflow.
        middle = (low | high) - ((low ^ high) >> 1)  # pyright: ignore[reportOperatorIssue]
        reached = tl.sum((keys >= middle).to(tl.int32))
        high = tl.where(reached == k, middle, tl.where(reached < k, middle - 1, high))
        low = tl.where(reached < k, low, middle)
    return low


@triton.jit
def compact(keys, bound, spare):
    """Place of each key among those above `bound` and the first `spare` equal to it, in order; and which are kept.

    One running count serves both: keys above in its low half, equal ones in its high half (up to 2**15 keys).
    """
    above = (keys > bound).to(tl.int32)
    equal = (keys == bound).to(tl.int32)
    running = tl.cumsum(above | (equal << 16), 0)
    ties = running >> 16
    place = (running & 0xFFFF) + tl.minimum(ties, spare) - 1
    return place, (above != 0) | ((equal != 0) & (ties <= spare))


@triton.jit
def compact_largest(keys, k):
    """`compact` for the k largest keys; ties go to the first."""
    bound = kth_key(keys, k)
    return compact(keys, bound, k - tl.sum((keys > bound).to(tl.int32)))
