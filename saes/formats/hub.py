"""Dictionaries on the Hugging Face hub: `hf:ORG/REPO[/FOLDER][@REVISION]`, fetched once and kept in the hub's cache.

    monosem.saes.load("hf:org/repo/folder")                    whatever format lies there
    monosem.saes.formats.push(dictionary, "org/repo", folder="l12")    ours, or to="sae-lens" for SAELens

Only the files of dictionaries are fetched, not the whole repository. Those that the hub knows by their SHA-256 are
checked against it. HF_HUB_OFFLINE=1, HF_TOKEN and HF_HOME work as in huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ...lab.errors import InputError, unknown
from ...lab.storage import file_sha256

SCHEME = "hf:"
OURS = "monosem"

_REFERENCE = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/([^@]+?))?/?(?:@(.+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Reference(NamedTuple):
    """A folder or a file on the hub."""

    repo: str
    path: str = ""
    """Inside the repository; empty for its root."""
    revision: str | None = None
    """A branch, a tag or a commit."""

    def __str__(self) -> str:
        return (
            SCHEME + self.repo + (f"/{self.path}" if self.path else "") + (f"@{self.revision}" if self.revision else "")
        )

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read `hf:ORG/REPO[/FOLDER][@REVISION]`.

        Raises:
            InputError: it has another form.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise InputError(
                f"{text!r} is no place on the hub: write hf:ORG/REPO, hf:ORG/REPO/FOLDER or either @REVISION"
            )
        return cls(match[1], match[2] or "", match[3])


def fetch(place: Reference, names: Collection[str], cache: Path | None = None) -> Path:
    """The local path of a folder or file on the hub; fetched if it is not in the cache yet.

    Args:
        names: files of the folder to fetch, where they exist.
        cache: by default huggingface_hub's.

    Raises:
        InputError: no network or offline and not in the cache, no such repository, revision or path, no permission, or
            a file in the cache that is not what the hub sent.
    """
    from huggingface_hub import snapshot_download

    wanted = [f"{place.path}/{name}".lstrip("/") for name in names] + ([place.path] if place.path else [])
    with one_sentence(place):
        root = snapshot_download(place.repo, revision=place.revision, allow_patterns=wanted, cache_dir=cache)
    path = Path(root) / place.path
    if not any((Path(root) / name).is_file() for name in wanted):
        raise InputError(f"{place}: {_what_is_there(place)}")
    for file in (Path(root) / name for name in wanted):
        _check(file)
    return path


def _check(file: Path) -> None:
    """Large files are kept under their SHA-256, which the hub told before it sent them."""
    blob = file.resolve()
    if file.is_file() and _SHA256.fullmatch(blob.name) and file_sha256(blob) != blob.name:
        raise InputError(f"{file} is damaged (its SHA-256 is not {blob.name}): delete {blob} to fetch it again")


def _what_is_there(place: Reference) -> str:
    """Why a folder of the hub gave no file."""
    from huggingface_hub import HfApi

    with one_sentence(place):
        files = HfApi().list_repo_files(place.repo, revision=place.revision)
    folders = sorted({str(Path(file).parent) for file in files} - {"."})
    if place.path and place.path not in folders:
        return str(unknown(f"folder of {place.repo}", place.path, folders))
    inside = ", ".join(folders[:8]) + (", ..." if len(folders) > 8 else "")
    return "no dictionary's files there" + (f"; the folders are {inside}" if inside and not place.path else "")


@contextmanager
def one_sentence(place: Reference, failure: str = "is not in the local cache") -> Iterator[None]:
    """Errors of the hub client become one `InputError` each."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError:
        raise InputError(f"{place.repo!r} is no repository name: give ORG/NAME") from None
    except errors.GatedRepoError:
        raise InputError(
            f"{place.repo} is gated: ask for access on its page, and log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"no repository {place.repo} on the hub that you may use: check the name, or log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{place.repo} has no revision {place.revision!r}") from None
    except errors.LocalTokenNotFoundError:
        raise InputError(f"{place}: log in with `hf auth login`, or set HF_TOKEN") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        if isinstance(error, errors.HfHubHTTPError):
            raise _refused(place, error) from None
        raise InputError(
            f"{place} {failure}, for the hub is out of reach: check the network, and HF_HUB_OFFLINE"
        ) from None


def _refused(place: Reference, error: Exception) -> InputError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return InputError(f"the hub refuses {place.repo}: log in with `hf auth login` (or set HF_TOKEN) as one who may")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"the hub answers {status} for {place.repo}: {reason}")
