"""Selection on integer keys: fp32 entries mapped to int32 in the same order, so that loops over them vectorise.

LLVM turns integer maxima and counts into vector instructions and leaves floating-point ones scalar.
"""

from __future__ import annotations

import numpy as np

from .compiled import inlined

GROUP = 32
"""Columns per group: 128 bytes, and for k = 32 of 9216 the maxima and the surviving groups cost alike."""

MAGNITUDE = np.int32(0x7FFFFFFF)
LOWEST = np.int32(-0x80000000)


@inlined
def flip(bits):
    """Bits of an fp32 number to a key of the same order, and back: it is its own inverse."""
    return bits ^ ((bits >> np.int32(31)) & MAGNITUDE)


@inlined
def flip_all(bits, out):
    """out = flip(bits), entry by entry."""
    for i in range(bits.shape[0]):
        out[i] = flip(bits[i])


@inlined
def largest_key(keys):
    """The largest of a short slice."""
    best = LOWEST
    for i in range(keys.shape[0]):
        best = max(best, keys[i])
    return best


@inlined
def largest_magnitude(bits):
    """Bits of the largest absolute value."""
    best = np.int32(0)
    for i in range(bits.shape[0]):
        best = max(best, bits[i] & MAGNITUDE)
    return best


@inlined
def n_groups(n):
    """Number of groups of a row of n columns."""
    return (n + GROUP - 1) // GROUP


@inlined
def fold_keys(keys, maxima):
    """maxima[g] = largest of keys[32 g : 32 g + 32]."""
    for g in range(maxima.shape[0]):
        maxima[g] = largest_key(keys[g * GROUP : min((g + 1) * GROUP, keys.shape[0])])


@inlined
def count_reaching(keys, bound):
    """How many keys are at least `bound`."""
    count = np.int32(0)
    for i in range(keys.shape[0]):
        count += np.int32(keys[i] >= bound)
    return count


@inlined
def kth_key(keys, k, slack):
    """The k-th largest key (k from 1), by bisection; with slack, any key that k to k + slack of them reach.

    Fewer keys than k: the lowest there is.
    """
    if k > keys.shape[0]:
        return LOWEST
    lowest, highest = keys[0], keys[0]
    for i in range(keys.shape[0]):
        lowest, highest = min(lowest, keys[i]), max(highest, keys[i])
    low, high = np.int64(lowest), np.int64(highest) + 1  # at least k reach low, fewer reach high
    while high - low > 1:
        middle = (low + high) >> 1
        count = count_reaching(keys, np.int32(middle))
        if count < k:
            high = middle
        else:
            low = middle
            if count <= k + slack:
                break
    return np.int32(low)


@inlined
def gather_reaching(part, bound, base, filled, values, columns):
    """Append the entries of one group (keys or numbers) that reach `bound`. Returns the new count. Without branches.

    `values` and `columns` have room for one entry more than can be found.
    """
    slot = np.uintp(filled)
    for i in range(part.shape[0]):
        values[slot] = part[i]
        columns[slot] = base + i
        slot += np.uintp(part[i] >= bound)
    return np.int64(slot)


@inlined
def places(flags, out):
    """out = where the flags are set. Returns how many are. Without branches; out has room for every flag."""
    slot = np.uintp(0)
    for i in range(flags.shape[0]):
        out[slot] = i
        slot += np.uintp(flags[i])
    return np.int64(slot)


@inlined
def keep_best(keys, columns, candidates, k):
    """Move the k best of `candidates` candidates to the front, in the order they came. Returns the count.

    Ties at the k-th key go to those that came first.
    """
    if candidates <= k:
        return candidates
    bound = kth_key(keys[:candidates], k, 0)
    ties = k
    for i in range(candidates):
        ties -= keys[i] > bound
    slot = np.uintp(0)
    for i in range(candidates):
        key = keys[i]
        tie = (key == bound) & (ties > 0)
        ties -= tie
        keys[slot], columns[slot] = key, columns[i]
        slot += np.uintp((key > bound) | tie)
    return np.int64(slot)
