"""Files of a checkpoint that turn text into tokens and back: copied into the bundle as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from moe_export.errors import UsageError

TOKENIZER_FOLDER = "tokenizer"
TOKENIZER_FILE = f"{TOKENIZER_FOLDER}/tokenizer.json"
GENERATION_CONFIG = "generation_config.json"
_MAX_BYTES = 256 * 1024 * 1024
# What transformers' tokenizers read; nothing else is taken, whatever the folder holds.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "tiktoken.model",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def copy_text_files(source: Path, folder: Path) -> tuple[str, ...]:
    """Copy tokenizer files to ``folder/tokenizer`` and the generation config beside the model.

    Args:
        source: The checkpoint's folder.
        folder: The bundle that is written.

    Returns:
        Paths inside the bundle.

    Raises:
        UsageError: a file is too large, is no JSON although it is called so, or is a link that
            leads out of the checkpoint.
    """
    wanted = {name: f"{TOKENIZER_FOLDER}/{name}" for name in _TOKENIZER_FILES}
    copied = []
    for name, target in {**wanted, GENERATION_CONFIG: GENERATION_CONFIG}.items():
        path = source / name
        if not path.is_file():
            continue
        _check(path, source)
        (folder / target).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / target)
        copied.append(target)
    return tuple(copied)


def _check(path: Path, source: Path) -> None:
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in _roots(source)):
        raise UsageError(
            f"{path} is a link to {real}, outside the checkpoint: it is not copied into a bundle. "
            "Put the file itself there, or remove the link"
        )
    if (size := real.stat().st_size) > _MAX_BYTES:
        raise UsageError(f"{path} has {size} bytes; a tokenizer's file has at most {_MAX_BYTES}")
    if path.suffix == ".json":
        try:
            json.loads(real.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not JSON: {error}") from error


def _roots(source: Path) -> list[Path]:
    """The checkpoint's folder; for a snapshot in the hub's cache also the blobs that it links."""
    real = source.resolve()
    blobs = real.parent.parent / "blobs"
    return [real, blobs] if real.parent.name == "snapshots" else [real]
