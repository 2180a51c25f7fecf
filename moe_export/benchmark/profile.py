"""Times of the MoE layers from ONNX Runtime's profile."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_export.errors import MoeExportError

_NODE, _NODE_END, _RUN = "Node", "_kernel_time", "model_run"


@dataclass(frozen=True)
class ProfiledRun:
    """One run of a session.

    Attributes:
        layers: Seconds of each MoE layer's own nodes, by its path: its experts, and its router
            where that is one node.
    """

    layers: Mapping[str, float]


def read_profile(path: Path, layer_paths: Iterable[str]) -> list[ProfiledRun]:
    """The runs of a profile in order.

    Args:
        path: What ONNX Runtime wrote.
        layer_paths: The MoE layers; their nodes are named by path, a slash and the op.

    Raises:
        MoeExportError: the file is no such profile.
    """
    try:
        events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        starts = sorted(e["ts"] for e in events if e.get("name") == _RUN)
        nodes = [(e["ts"], e["dur"], e["name"]) for e in events if e.get("cat") == _NODE]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MoeExportError(f"{path} is no profile of ONNX Runtime: {error!r}") from error
    owners = {layer or "root": layer for layer in layer_paths}
    layers: list[dict[str, float]] = [{} for _ in starts]
    for start, microseconds, name in nodes:
        owner, _, op = str(name).rpartition("/")
        run = bisect.bisect_right(starts, start) - 1
        if run < 0 or owner not in owners or not op.endswith(_NODE_END):
            continue
        layer = owners[owner]
        layers[run][layer] = layers[run].get(layer, 0.0) + microseconds / 1e6
    return [ProfiledRun(own) for own in layers]
