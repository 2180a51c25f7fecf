"""Stage 2: find every MoE layer of a model, or say why one cannot be lowered."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.progress import Progress
from moe_export.recognize.block import MoeBlock
from moe_export.recognize.experts_hook import has_experts_hook, recognize_hooked_experts
from moe_export.recognize.module_list import recognize_module_list
from moe_export.recognize.recorder import Recording, recording
from moe_export.recognize.registered import recognize_registered
from moe_export.recognize.registry import registered_description
from moe_export.recognize.routing_sites import RoutingSite, find_routing_sites
from moe_export.sources.model import LoadedModel

_HOW = (
    "Describe the layer with moe_export.register_block (README, 'A layer of your own'), or write "
    "it as a list of alike experts behind a top-k gate"
)


def recognize(loaded: LoadedModel, progress: Progress) -> list[MoeBlock]:
    """Recognize and prove every MoE layer that runs on the example inputs.

    Args:
        loaded: The model in eval mode.
        progress: Told of every layer and of hooked experts that never run.

    Returns:
        The blocks in the order of the model's modules; at least one.

    Raises:
        UsageError: the model does not run on the example inputs.
        UnsupportedModelError: a layer routes in a way that is not recognized, or there is none.
    """
    with recording(loaded.model) as record:
        try:
            loaded.run(loaded.inputs)
        except UnsupportedModelError as error:
            raise UsageError(
                f"the example inputs do not fit: {error}. Give other sizes or types with --input "
                "NAME=SIZES[:DTYPE]; ids need :int64"
            ) from error
    blocks: dict[nn.Module, MoeBlock] = {}
    for path, module in progress.track(_described(loaded.model), "layers"):
        if module not in record.calls:
            progress.remark(f"{path} never runs on the example inputs: it is left out")
        elif describe := registered_description(module):
            blocks[module] = recognize_registered(path, module, describe, record)
        else:
            blocks[module] = recognize_hooked_experts(path, module)
    sites = find_routing_sites(loaded.model, record, blocks)
    for site in progress.track(sites, "layers"):
        blocks[site.module] = _recognize_site(site, record)
    if not blocks:
        raise UnsupportedModelError(_nothing_found(loaded.model))
    order = {module: i for i, module in enumerate(loaded.model.modules())}
    return sorted(blocks.values(), key=lambda block: order[block.module])


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


def _recognize_site(site: RoutingSite, record: Recording) -> MoeBlock:
    try:
        return recognize_module_list(site.path, site.module, record)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{site.path or '<root>'} ({type(site.module).__name__}) routes tokens by value "
            f"({', '.join(site.operators)}), and is not a form that can be lowered.\n"
            f"Tried as a list of experts behind a top-k gate: {error}.\n{_HOW}"
        ) from error


def _nothing_found(model: nn.Module) -> str:
    return (
        f"no Mixture-of-Experts layer found in {type(model).__name__}: no module has transformers' "
        "experts hook or a registered description, and none selects among alike modules or stacked "
        f"parameters by value. {_HOW}"
    )
