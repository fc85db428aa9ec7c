"""The one exception for bad input: it names the value, what is allowed and the fix.

The command line turns an `InputError` into one sentence and exit status 2; every other exception is a
failure (exit status 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the caller gave cannot be used. The message is one sentence meant for the caller."""


def nearest(value: str, allowed: Iterable[str], n: int = 3) -> list[str]:
    """The `n` names in `allowed` that read most like `value`, best first."""
    names = list(dict.fromkeys(str(a) for a in allowed))
    folded = {name.lower(): name for name in names}
    hits = difflib.get_close_matches(value.lower(), folded, n=n, cutoff=0.5)
    return [folded[hit] for hit in hits]


def unknown(kind: str, value: object, allowed: Iterable[str]) -> InputError:
    """An error for a name outside a closed set, with the nearest allowed names.

    >>> raise unknown("site", "resid_pots", ["resid_pre", "resid_post"])
    InputError: unknown site 'resid_pots': did you mean 'resid_post' or 'resid_pre'?
    """
    names = [str(a) for a in allowed]
    close = nearest(str(value), names)
    if close:
        hint = "did you mean " + " or ".join(repr(name) for name in close) + "?"
    else:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        hint = f"allowed are {shown}" if shown else "none are known here"
    return InputError(f"unknown {kind} {value!r}: {hint}")
