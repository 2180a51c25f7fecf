"""What a call of a PyTorch operator carries besides tensors, as one JSON string.

The attribute records of the contract stay the only place that lists attributes.
"""

from __future__ import annotations

import json
from typing import TypeVar

from moe_export.ops.layout import SourceLayout
from moe_export.ops.record import OpAttributes

_Attributes = TypeVar("_Attributes", bound=OpAttributes)


def dump_call(attributes: OpAttributes, layout: SourceLayout, path: str) -> str:
    """The string for a call with ``attributes`` from the module at ``path``."""
    return json.dumps(
        {"attributes": attributes.to_onnx(), "layout": vars(layout), "path": path}, sort_keys=True
    )


def call_attributes(kind: type[_Attributes], call: str) -> _Attributes:
    """The attributes of a call of the op that ``kind`` describes."""
    return kind.from_onnx(json.loads(call)["attributes"])


def call_layout(call: str) -> SourceLayout:
    """How a call's weights are stored."""
    return SourceLayout(**json.loads(call)["layout"])
