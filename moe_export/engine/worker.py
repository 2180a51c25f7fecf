"""The process that builds an engine: ``python -m moe_export.engine.worker REQUEST.json``.

Polygraphy chooses between TensorRT and TensorRT-RTX once for a process, before it is imported, and
a plugin that goes wrong may end the process: so the build has one to itself.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from pathlib import Path
from typing import Any

# Kinds of failures, which the caller turns into errors.
LACKS, REFUSED = "lacks", "refused"
_MOST_LINES = 12
_MOST_CHARACTERS = 600


class BuildFailure(Exception):  # noqa: N818 - reported, and raised again in the caller
    """What went wrong, for people.

    Attributes:
        kind: ``LACKS`` or ``REFUSED``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def main(request_path: Path) -> None:
    """Build what a request asks for, and write the answer that it names."""
    request = json.loads(request_path.read_text(encoding="utf-8"))
    try:
        answer = _build(request)
    except BuildFailure as failure:
        answer = {"failure": failure.kind, "text": str(failure)}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def _build(request: dict[str, Any]) -> dict[str, Any]:
    trt, log = _import_tensorrt(request["module"])
    library = _load_plugins(trt, request["library"], log)
    from polygraphy.backend.trt import Profile, create_network, engine_bytes_from_network

    builder, network = create_network(strongly_typed=True)
    _parse(trt, network, request["model"], library, log)
    plugins, native = _plugin_layers(trt, network), _native_layers(trt, network)
    _check_layers(request["layers"], {name: kind for name, (kind, _) in plugins.items()} | native)
    profiles = [Profile() for _ in request["profiles"]]
    for profile, shapes in zip(profiles, request["profiles"], strict=True):
        for name, (least, best, largest) in shapes.items():
            profile.add(name, least, best, largest)
    log.clear()
    cache = request["timing_cache"]
    try:
        config = _config(trt, request, profiles)
        plan = engine_bytes_from_network((builder, network), config, save_timing_cache=cache)
    except Exception as error:  # Polygraphy and the bindings raise kinds of their own
        raise BuildFailure(
            REFUSED, _explain(f"no engine was built: {error}", library, log)
        ) from error
    with Path(request["plan"]).open("wb") as file:
        file.write(memoryview(plan))
    return {"version": trt.__version__, "plugins": plugins}


def _import_tensorrt(name: str) -> tuple[Any, list[str]]:
    """TensorRT's module, and the list that its errors go to."""
    try:
        trt: Any = importlib.import_module(name)
        polygraphy: Any = importlib.import_module("polygraphy.backend.trt.util")
    except (ImportError, OSError, RuntimeError) as error:
        raise BuildFailure(LACKS, f"{name} or polygraphy cannot be imported: {error}") from error
    lines: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:  # noqa: ANN401 - an enumeration of TensorRT
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                lines.append(text)

    polygraphy.TRT_LOGGER = Logger()
    return trt, lines


def _load_plugins(trt: Any, path: str, log: list[str]) -> ctypes.CDLL:  # noqa: ANN401
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise BuildFailure(LACKS, f"the plugin library does not load: {error}") from error
    if trt.get_plugin_registry().load_library(path) is None:
        text = f"{trt.__name__} {trt.__version__} does not take the plugins of {path}"
        raise BuildFailure(LACKS, _explain(text, library, log))
    return library


def _parse(trt: Any, network: Any, model: str, library: ctypes.CDLL, log: list[str]) -> None:  # noqa: ANN401
    polygraphy: Any = importlib.import_module("polygraphy.backend.trt.util")
    parser = trt.OnnxParser(network, polygraphy.get_trt_logger())
    if parser.parse_from_file(model):
        return
    found = []
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        where = f"{error.node_operator()} {error.node_name()}: " if error.node_operator() else ""
        found.append(f"{where}{error.desc()}")
    # The log says the same again, with the importer's own lines around it.
    told = "\n".join(found)
    log[:] = [*found, *(line for line in log if line not in told and not _is_frame(line))]
    raise BuildFailure(REFUSED, _explain("its parser refuses the graph", library, log))


def _is_frame(line: str) -> bool:
    """Whether a line of the log only says where the importer was."""
    return line.startswith("ModelImporter.cpp")


def _plugin_layers(trt: Any, network: Any) -> dict[str, list[str]]:  # noqa: ANN401
    """Name and version of the plugin of every layer that is one, by the layer's name."""
    found = {}
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer
            core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
            found[layer.name] = [core.plugin_name, core.plugin_version]
    return found


def _native_layers(trt: Any, network: Any) -> dict[str, str]:  # noqa: ANN401
    """The node that each of TensorRT's own MoE layers comes from, by the layer's name."""
    kind = getattr(trt.LayerType, "MOE", None)  # TensorRT has it from 10.16 on
    layers = (network.get_layer(number) for number in range(network.num_layers))
    return {layer.name: "TRT_MoE" for layer in layers if kind is not None and layer.type == kind}


def _check_layers(expected: dict[str, str], found: dict[str, str]) -> None:
    """Check that each MoE node of the graph is the layer that it has to be."""
    missing = [f"{kind} {name}" for name, kind in expected.items() if found.get(name) != kind]
    if missing:
        listed = ", ".join(f"{kind} {name}" for name, kind in found.items()) or "none"
        raise BuildFailure(
            REFUSED,
            f"the parsed network has no layer for {', '.join(missing)}; it has {listed}",
        )


def _config(trt: Any, request: dict[str, Any], profiles: list[Any]) -> Any:  # noqa: ANN401
    if request["flavor"] == "tensorrt-rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        wanted = [tuple(map(int, c.split("."))) for c in request["compute_capabilities"]]
        for major, minor in wanted:
            _check_capability(trt, major, minor)
        if not wanted:
            return CreateConfigRTX(profiles=profiles, use_gpu=True)
        return CreateConfigRTX(profiles=profiles, compute_capabilities=wanted)
    from polygraphy.backend.trt import CreateConfig

    ampere = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    return CreateConfig(
        profiles=profiles,
        version_compatible=request["version_compatible"],
        hardware_compatibility_level=ampere if request["hardware_compatible"] else None,
        load_timing_cache=request["timing_cache"],
    )


def _check_capability(trt: Any, major: int, minor: int) -> None:  # noqa: ANN401
    if not hasattr(trt.ComputeCapability, f"SM{major}{minor}"):
        known = [n[2:] for n in dir(trt.ComputeCapability) if n.startswith("SM")]
        listed = ", ".join(sorted((f"{n[:-1]}.{n[-1]}" for n in known), key=float))
        raise BuildFailure(
            REFUSED, f"it builds for compute capabilities {listed}; asked for was {major}.{minor}"
        )


def _explain(text: str, library: ctypes.CDLL, log: list[str]) -> str:
    """``text``, what the plugins say, then what TensorRT says."""
    lines = [text]
    try:
        last_error = library.moe_export_last_error
    except AttributeError:
        pass
    else:
        last_error.restype = ctypes.c_char_p
        if said := last_error():
            lines.append(f"plugin: {said.decode(errors='replace')}")
            # TensorRT then only repeats that a plugin failed, in many words.
            return "\n  ".join([*lines, *(line.split("\n")[0] for line in log[:1])])
    lines += [_shorten(line) for line in list(dict.fromkeys(log))[:_MOST_LINES]]
    return "\n  ".join(lines)


def _shorten(line: str) -> str:
    """A line of a readable length, its end too: some print the weights of a layer in between."""
    if len(line) <= _MOST_CHARACTERS:
        return line
    return f"{line[: _MOST_CHARACTERS // 2]} ... {line[-_MOST_CHARACTERS // 2 :]}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
