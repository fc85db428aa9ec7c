"""From a file's content to a checked dictionary, with one kind of error."""

from __future__ import annotations

from collections.abc import Callable

from ...lab.errors import InputError
from ..dictionary import Dictionary
from .forward import check
from .losses import Losses
from .portable import Portable
from .table import Raw


def converted(raw: Raw, parse: Callable[[Raw, Losses], Portable], losses: Losses) -> Dictionary:
    """The dictionary that `parse` finds in `raw`; both sides have run the same rows.

    Raises:
        InputError: whatever is wrong with the content; names the subject or the file.
    """
    try:
        portable = parse(raw, losses)
        dictionary = portable.build()
    except InputError as error:
        named = any(str(name) in str(error) for name in (losses.subject, raw.path, raw.path.parent))
        raise error if named else InputError(f"{losses.subject}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{raw.path}: a config value has the wrong type or range ({error})") from error
    check(portable, dictionary, losses.subject)
    return dictionary
