"""Draw a bundle's layers and its parity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from moe_export.cli.console import format_error, make_table, shorten_path


def draw_layers(console: Console, layers: list[dict[str, Any]]) -> None:
    """One row per MoE layer: what it is and how large."""
    rows = []
    for layer in layers:
        experts = layer["experts"]
        router = layer.get("router", "-")
        if layer.get("gating"):  # in words, which bundles of earlier versions do not have
            router = layer.get("routing") or router
        inner = experts.get("intermediate_size", experts.get("output_size"))
        size, form = f"{experts['hidden_size']}x{inner}", describe_form(experts)
        rows.append(
            (shorten_path(layer["path"]), layer["kind"], experts["num_experts"], size, form, router)
        )
    columns = ("MoE layer", "found as", "experts", "H x I", "expert", "router")
    console.print(make_table("", columns, rows))
    draw_unfused_routers(console, layers)


def describe_form(experts: Mapping[str, Any]) -> str:
    """An expert in words: its activation, or its operators where it is no FFN of the contract."""
    if "activation" not in experts:
        return str(experts["operators"])
    return f"{experts['activation']}{', gated' if experts['gated'] else ''}"


def draw_unfused_routers(console: Console, layers: list[dict[str, Any]]) -> None:
    """Why routers stay standard operators: one line per reason, with the layers it holds for."""
    paths: dict[str, list[str]] = {}
    for layer in layers:
        if not layer.get("gating") and layer.get("routing"):
            paths.setdefault(layer["routing"], []).append(layer["path"] or "<root>")
    for reason, where in paths.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        console.print(
            f"router of {where[0]}{more} stays standard operators: {reason}", soft_wrap=True
        )


def draw_parity(console: Console, parity: Mapping[str, Any]) -> None:
    """The parity table: each layer's routing and numbers, then the whole model's outputs."""
    rows = [
        (
            shorten_path(layer["path"]),
            layer["tokens"],
            f"{layer['experts_reached']}/{layer['num_experts']}",
            layer["disagreeing"],
            layer["tied"],
            format_error(layer["weight_error"]),
            format_error(layer["output_error"]),
            format_error(max(map(float, layer["alone"].values())) if layer["alone"] else None),
        )
        for layer in parity["layers"]
    ]
    columns = ("routing", "tokens", "experts", "other", "tied", "weights", "sum", "alone")
    console.print(make_table("", columns, rows))
    cases = [
        (case["name"], name, case["redrawn"], format_error(error))
        for case in parity["cases"]
        for name, error in case["errors"].items()
    ]
    console.print(make_table("", ("whole model", "output", "redrawn", "error"), cases))
    if parity["source_dtype"]:
        error = format_error(parity["source_dtype_error"])
        console.print(f"against eager in {parity['source_dtype']} (not judged): error {error}")


def draw_verdict(console: Console, manifest: Mapping[str, Any]) -> None:
    """One line that says whether the bundle was proved."""
    parity = manifest["parity"]
    if parity["status"] in ("passed", "graph"):
        rounded, on_cpu = parity.get("quantization"), parity["status"] == "graph"
        what = "parity of the graph, on the CPU," if on_cpu else "parity"
        console.print(
            f"[green]{what} passed[/]: {parity['tokens']} tokens per layer, "
            f"{parity['disagreeing_tokens']} routed otherwise, largest error "
            f"{format_error(parity['max_error'])}{' in float32' if rounded else ''}",
            soft_wrap=True,
        )
        if rounded:
            console.print(
                f"rounded weights: outputs differ from eager's by {format_error(rounded['rms'])} "
                f"(RMS), {format_error(rounded['largest'])} at most",
                soft_wrap=True,
            )
        if on_cpu:
            console.print(
                "[yellow]not seen on a GPU[/]: moe-export verify compares what one computes",
                soft_wrap=True,
            )
    else:
        why = f": {parity['reason']}" if parity.get("reason") else ""
        console.print(f"[red]not verified[/]: parity {parity['status']}{why}", soft_wrap=True)
    if manifest["batch_coupled"]:
        console.print("[yellow]batch-coupled[/]: one request can change another's result")


def draw_engine(console: Console, manifest: Mapping[str, Any]) -> None:
    """One line on a bundle's engine: what built it, for which GPUs, with which plugins."""
    engine = manifest.get("engine")
    if engine is None:
        return
    console.print(
        f"engine of {engine['flavor']} {engine['version']} for compute capability "
        f"{', '.join(engine['compute_capabilities'])}, in {engine['dtype']}; plugins "
        f"{', '.join(engine['plugins'])}",
        soft_wrap=True,
        highlight=False,
    )


def draw_signature(console: Console, manifest: Mapping[str, Any]) -> None:
    """Inputs and outputs with their types and shapes; a cache's tensors in one line."""
    generation = manifest.get("generation")
    caches = generation["caches"] if generation else []
    cached = {cache[side] for cache in caches for side in ("past", "present")}
    for kind in ("inputs", "outputs"):
        for value in manifest[kind]:
            if value["name"] not in cached:
                shape = escape(str(list(value["shape"])).replace("'", ""))
                console.print(f"{kind[:-1]:<7} {value['name']}: {value['dtype']} {shape}")
    if generation:
        console.print(f"cache   {describe_cache(generation)}", soft_wrap=True)


def describe_cache(generation: Mapping[str, Any]) -> str:
    """A cache in words: how many tensors, behind which windows, and what goes with them."""
    caches = generation["caches"]
    parts = [f"{len(caches)} tensors, {caches[0]['past']} to {caches[-1]['present']}"]
    windows = sorted({c["sliding_window"] for c in caches if c["sliding_window"] is not None})
    if windows:
        count = sum(c["sliding_window"] is not None for c in caches)
        sizes = ", ".join(map(str, windows))
        parts.append(f"{count} of them seen through a window of {sizes} tokens")
    parts.append(generation["tokenizer"] or "no tokenizer")
    return "; ".join(parts)
