"""Stage 2: find every MoE layer of a model, or say why one cannot be lowered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.progress import Progress
from moe_export.recognize.block import MoeBlock
from moe_export.recognize.custom import recognize_custom
from moe_export.recognize.experts_hook import has_experts_hook, recognize_hooked_experts
from moe_export.recognize.recorder import Recording, recording
from moe_export.recognize.registered import recognize_registered
from moe_export.recognize.registry import registered_description
from moe_export.recognize.routing_sites import (
    RoutingSite,
    find_quiet_sites,
    find_routing_sites,
)
from moe_export.sources.model import LoadedModel

_HOW = "Describe a layer with moe_export.register_block (README, 'A layer of your own')"


# Modules around a part of a layer that are tried instead of it.
_LEVELS = 2


@dataclass(frozen=True)
class Refusal:
    """One layer that routes by value and cannot be lowered.

    Attributes:
        path: The layer's path in the model.
        reason: What was tried, and how near it came.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class Recognition:
    """What was found in a model.

    Attributes:
        blocks: Layers that can be lowered, in the order of the model's modules.
        refusals: Layers that cannot.
    """

    blocks: tuple[MoeBlock, ...]
    refusals: tuple[Refusal, ...] = ()


def recognize(loaded: LoadedModel, progress: Progress, *, keep_going: bool = False) -> Recognition:
    """Recognize and prove every MoE layer that runs on the example inputs.

    Args:
        loaded: The model in eval mode.
        progress: Told of every layer and of hooked experts that never run.
        keep_going: Whether to go on after a layer that cannot be lowered.

    Returns:
        At least one block or refusal; no refusals unless ``keep_going``.

    Raises:
        UsageError: the model does not run on the example inputs.
        UnsupportedModelError: a layer cannot be lowered, or there is none.
    """
    record = _record(loaded)
    blocks: dict[nn.Module, MoeBlock] = {}
    refusals: list[Refusal] = []

    def attempt(path: str, find: Callable[[], MoeBlock]) -> None:
        try:
            block = find()
        except UnsupportedModelError as error:
            if not keep_going:
                raise
            refusals.append(Refusal(path, str(error)))
        else:
            blocks[block.module] = block
            tell(block.path, block)

    def tell(path: str, block: MoeBlock) -> None:
        for remark in block.remarks:
            progress.remark(f"{path or '<root>'}: {remark}")

    for path, module in progress.track(_described(loaded.model), "layers"):
        if module not in record.calls:
            progress.remark(f"{path} never runs on the example inputs: it is left out")
            continue
        attempt(path, partial(_recognize_described, path, module, record))
    sites = find_routing_sites(loaded.model, record, blocks)
    for site in progress.track(sites, "layers"):
        if not any(_overlap(site.module, module) for module in blocks):
            attempt(site.path, partial(_recognize_site, site, loaded.model, record))
    passed: list[str] = []
    refused = [loaded.model.get_submodule(refusal.path) for refusal in refusals]
    # A model with the hook uses it for every layer; trying its attention would take minutes.
    hooked = any(block.kind == "experts hook" for block in blocks.values())
    for site in find_quiet_sites(
        loaded.model, record, [*blocks, *refused], around_selections=not hooked
    ):
        if any(_overlap(site.module, module) for module in blocks):
            continue  # a layer inside or around it was found meanwhile
        try:
            blocks[site.module] = recognize_custom(site.path, site.module, record)
        except UnsupportedModelError as error:  # the exporter takes it as it is
            passed.append(str(error))
        else:
            tell(site.path, blocks[site.module])
    if not blocks and not refusals:
        raise UnsupportedModelError(_nothing_found(loaded.model, passed))
    order = {module: i for i, module in enumerate(loaded.model.modules())}
    found = sorted(blocks.values(), key=lambda block: order[block.module])
    return Recognition(tuple(found), tuple(refusals))


def _enclosing(path: str) -> list[str]:
    """Paths of the modules around a module, the nearest first."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts) - 1, -1, -1)]


def _overlap(a: nn.Module, b: nn.Module) -> bool:
    return a in set(b.modules()) or b in set(a.modules())


def _record(loaded: LoadedModel) -> Recording:
    """Eager runs: as the example is and, where it has masks, padded.

    Models give their layers no mask where it would hide nothing, and the export always does.
    """
    with recording(loaded.model) as record:
        try:
            loaded.run(loaded.inputs)
        except UnsupportedModelError as error:
            raise UsageError(
                f"the example inputs do not fit: {error}. Give other sizes or types with --input "
                "NAME=SIZES[:DTYPE]; ids need :int64"
            ) from error
    if padded := _with_padding(loaded.inputs):
        with suppress(UnsupportedModelError), recording(loaded.model) as other:
            loaded.run(padded)
            record.other = other
    return record


def _with_padding(inputs: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The inputs with the last position of open masks ``[B, S]`` closed; None without one.

    The last position is one that tokens before it never attend to in a causal model.
    """
    masks = {
        name: mask
        for name, mask in inputs.items()
        if "mask" in name and mask.dim() == 2 and mask.shape[1] > 1 and bool((mask == 1).all())
    }
    if not masks:
        return None
    closed = {name: mask.clone() for name, mask in masks.items()}
    for mask in closed.values():
        mask[-1, -1] = 0
    return {**inputs, **closed}


def _recognize_described(path: str, module: nn.Module, record: Recording) -> MoeBlock:
    if describe := registered_description(module):
        return recognize_registered(path, module, describe, record)
    return recognize_hooked_experts(path, module)


def _described(model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    """Modules that say themselves what they are, outermost first, none inside another."""
    found: list[tuple[str, nn.Module]] = []
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module in inside:
            continue
        if registered_description(module) is not None or has_experts_hook(module):
            found.append((path, module))
            inside.update(module.modules())
    return found


def _recognize_site(site: RoutingSite, model: nn.Module, record: Recording) -> MoeBlock:
    """The site, or a layer right around it, of which it may be a part."""
    try:
        return recognize_custom(site.path, site.module, record)
    except UnsupportedModelError as error:
        for path in _enclosing(site.path)[:_LEVELS]:
            module = model.get_submodule(path)
            if module in record.calls:
                with suppress(UnsupportedModelError):
                    return recognize_custom(path, module, record)
        raise UnsupportedModelError(
            f"{error}\nIt routes by value ({', '.join(site.operators)}), so that it is not left to "
            f"the exporter. {_HOW}"
        ) from error


def _nothing_found(model: nn.Module, passed: Sequence[str]) -> str:
    looked_at = "".join(f"\n{reason}" for reason in passed)
    return (
        f"no Mixture-of-Experts layer found in {type(model).__name__}: no module has transformers' "
        "experts hook or a registered description, none selects among alike modules or stacked "
        f"parameters by value, and no other is a weighted sum of experts.{looked_at}\n{_HOW}"
    )
