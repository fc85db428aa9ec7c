"""Compiled loops over the entries of a `Block`."""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def insert_best(rank, context, source, filled, group, new_rank, new_context, new_source):
    """Insertion into small sorted lists: rank, context and source are [groups, cap], filled is [groups].

    Rows 0 to filled[g] of group g ascend by rank; equal ranks stay in order of arrival. Of equal contexts in one
    group only the best stays.
    """
    cap = rank.shape[1]
    for e in range(group.shape[0]):
        g, r, c = group[e], new_rank[e], new_context[e]
        n = filled[g]
        if n == cap and r >= rank[g, n - 1]:
            continue
        at = 0
        while at < n and context[g, at] != c:
            at += 1
        if at < n:
            if r >= rank[g, at]:
                continue
        elif n < cap:
            filled[g] = n + 1
        else:
            at = cap - 1
        while at > 0 and rank[g, at - 1] > r:
            rank[g, at] = rank[g, at - 1]
            context[g, at] = context[g, at - 1]
            source[g, at] = source[g, at - 1]
            at -= 1
        rank[g, at] = r
        context[g, at] = c
        source[g, at] = new_source[e]


@njit(nogil=True, cache=True, error_model="numpy")
def cut_windows(entries, latent, cell, value, token, segment, measured, before, tokens, acts):
    """Write tokens and activations [E, W] around each entry; cells outside its segment stay as they are.

    An entry's other firings in the window lie next to it, because entries are sorted by latent, then cell.
    """
    n_cells, width = token.shape[0], tokens.shape[1]
    for row in range(entries.shape[0]):
        e = entries[row]
        first = cell[e] - before
        for w in range(width):
            c = first + w
            if 0 <= c < n_cells and segment[c] == segment[cell[e]]:
                tokens[row, w] = token[c]
                if measured[c]:
                    acts[row, w] = 0.0
        for step in (-1, 1):
            other = e if step > 0 else e - 1
            while 0 <= other < cell.shape[0] and latent[other] == latent[e]:
                w = cell[other] - first
                if w < 0 or w >= width or segment[cell[other]] != segment[cell[e]]:
                    break
                acts[row, w] = value[other]
                other += step
