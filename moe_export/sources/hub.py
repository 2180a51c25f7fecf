"""A model on the Hugging Face hub: its files, brought into the hub's own cache."""

from __future__ import annotations

import re
from pathlib import Path

from moe_export.errors import EnvironmentLacksError, UsageError
from moe_export.sources.checkpoint import INDEX_FILE, WEIGHTS_FILE, find_weights, read_index
from moe_export.sources.quantized import check_method

# What says how to read a model, before its weights; *.py is code, which needs trust.
_DESCRIPTION = ("*.json", "*.txt", "*.model", "*.jinja")
_ELSEWHERE = "*/*"  # copies of the weights in other formats
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@\w[\w./-]*)?")


def is_hub_id(source: str) -> bool:
    """Whether ``source`` has the form ``organization/name`` or ``organization/name@revision``."""
    return _HUB_ID.fullmatch(source) is not None


def fetch_model(source: str, *, trust: bool) -> Path:
    """Download a model, or find it in the cache; return the folder of its snapshot.

    The description comes first, so that a format that is not read is refused before its weights
    are downloaded. Both come from the commit that the revision named when the first one came.

    Args:
        source: ``organization/name``, or with ``@`` and a branch, a tag or a commit.
        trust: Download the modeling code that the model brings, too.

    Raises:
        EnvironmentLacksError: the hub cannot be reached, or asks for a token.
        UsageError: it has no such model or revision, or the model has no weights.
        UnsupportedModelError: the weights are quantized in a way that is not read.
    """
    name, _, revision = source.partition("@")
    patterns = [*_DESCRIPTION, "*.py"] if trust else [*_DESCRIPTION]
    folder = _download(source, name, revision or "main", patterns)
    if not (folder / "config.json").is_file():
        raise UsageError(f"{source} on the hub has no config.json: not a transformers model")
    check_method(folder, source)
    index = folder / INDEX_FILE
    shards = sorted(set(read_index(index).values())) if index.is_file() else [WEIGHTS_FILE]
    _download(source, name, folder.name, shards)
    if find_weights(folder) is None:
        _download(source, name, folder.name, ["pytorch_model*.bin"])
        if not any(folder.glob("pytorch_model*.bin")):
            raise UsageError(f"{source} has neither {WEIGHTS_FILE} nor {INDEX_FILE} on the hub")
    return folder


def _download(source: str, name: str, revision: str, patterns: list[str]) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise EnvironmentLacksError(
            "a model on the hub needs huggingface_hub: pip install 'moe-export[hf]'"
        ) from error
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=_ELSEWHERE
        )
    except errors.GatedRepoError as error:
        raise EnvironmentLacksError(
            f"{source} is gated: accept its terms on the hub, and set HF_TOKEN or run hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"{source}: no such folder here, and the hub has no model {name} that can be seen (a "
            "private one needs HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{source}: the hub's {name} has no revision {revision}") from error
    except ValueError as error:
        raise UsageError(f"{source} does not exist and is no id of the hub: {error}") from error
    except OSError as error:  # no network, offline mode, a full disk
        reason = str(error).strip().split("\n")[0]
        raise EnvironmentLacksError(
            f"{source}: no such folder here, and the hub did not give it ({reason}). Pass a folder "
            "that has been downloaded, or connect to the hub"
        ) from error
    return Path(folder)
