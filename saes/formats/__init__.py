"""Dictionaries in other libraries' files: read, recognised by file shape, and written.

    monosem.saes.load(path)                        any format, if nothing is lost
    formats.read(path, format=..., lossy=True)     one format, or one that loses something
    formats.write(dictionary, folder, to="sae-lens")

A path may also be a place on the Hugging Face hub, `hf:org/repo/folder` (`hub`), or the name of a released dictionary
in SAELens, `sae-lens:release/id` (`released`).

What a file says and we have no field for (config, dtypes) is kept in the dictionary's provenance, so that writing it
back in its own format gives the same tensors. Every conversion is checked: both sides run the same rows.
"""

from __future__ import annotations

from .convert import FILES as FILES
from .convert import FORMATS as FORMATS
from .convert import RELEASED as RELEASED
from .convert import Conversion as Conversion
from .convert import located as located
from .convert import read as read
from .convert import recognise as recognise
from .convert import require_new as require_new
from .convert import write as write
from .format import Format as Format
from .push import push as push
