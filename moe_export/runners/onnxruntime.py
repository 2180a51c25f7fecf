"""Run an ONNX file in ONNX Runtime with this package's op library."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.errors import EnvironmentLacksError, MoeExportError, UsageError
from moe_export.runners.arrays import Array
from moe_export.runners.half import read_ort_value, round_to_bfloat16
from moe_export.runners.providers import PROVIDERS, DeviceKind, check_gpu, check_provider

_BFLOAT16 = "tensor(bfloat16)"
# Types of arrays by those of inputs; float16 takes float32 too.
_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    _BFLOAT16: np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}

# Numbers of types in ONNX.
_ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}

_DATA_FOLDER_KEY = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Signature:
    """Name, type and shape of one input or output; a symbolic size is its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class OnnxRuntimeRunner:
    """A session on the CPU or on a GPU.

    Args:
        model: The ONNX file, beside its external data; or the bytes of one.
        library: The op library, or None to run the bodies in standard operators. On a GPU its
            kernels are those of the library beside it.
        device: ``cpu`` or ``cuda``.
        num_threads: Threads inside an operator; 0 for ONNX Runtime's choice.
        data_folder: Where external data lies if ``model`` is bytes.
        profile: What ONNX Runtime's profile of the session's runs is to be called, without the
            time that is added; ``end_profile`` gives it.

    Raises:
        EnvironmentLacksError: onnxruntime is not installed or does not take the library; or it or
            this machine has no GPU that runs the model.
        MoeExportError: ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        model: Path | bytes,
        library: Path | None,
        *,
        device: DeviceKind = "cpu",
        num_threads: int = 0,
        data_folder: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise EnvironmentLacksError(
                "running a bundle needs onnxruntime: pip install 'moe-export["
                f"{'gpu' if device == 'cuda' else 'cpu'}]'"
            ) from error
        if device == "cuda":
            check_gpu(onnxruntime)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors arrive as exceptions
        options.intra_op_num_threads = num_threads
        if data_folder is not None:
            options.add_session_config_entry(_DATA_FOLDER_KEY, str(data_folder))
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if library is not None:
            try:
                options.register_custom_ops_library(str(library))
            except Exception as error:  # onnxruntime raises its own kinds, none of them public
                raise EnvironmentLacksError(
                    f"onnxruntime {onnxruntime.__version__} does not take {library}: {error}"
                ) from error
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                options,
                providers=PROVIDERS[device],
            )
        except Exception as error:  # as above
            name = "a graph in memory" if isinstance(model, bytes) else model
            raise MoeExportError(f"ONNX Runtime refuses {name}: {error}") from error
        check_provider(self._session, device)
        self._device = device
        self.inputs = _signatures(self._session.get_inputs())
        self.outputs = _signatures(self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: Arrays by input name, of the types and shapes that ``self.inputs`` lists.

        Returns:
            Arrays by output name.

        Raises:
            UsageError: an input is missing, unknown, or of another type or rank.
        """
        if not isinstance(inputs, Mapping):
            names = ", ".join(s.name for s in self.inputs)
            raise UsageError(
                f"inputs are passed by name, as in run({{name: array}}); names: {names}"
            )
        if any(_BFLOAT16 in (s.dtype for s in side) for side in (self.inputs, self.outputs)):
            return self.run_keeping(inputs, {}, ())[0]
        feeds = self._checked_feeds(inputs, ())
        try:
            results = self._session.run(None, feeds)
        except Exception as error:  # onnxruntime raises its own kinds, none of them public
            raise MoeExportError(f"ONNX Runtime could not run the model: {error}") from error
        return {s.name: array for s, array in zip(self.outputs, results, strict=True)}

    def run_keeping(
        self, inputs: Mapping[str, Array], kept: Mapping[str, Any], keep: Collection[str]
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Run the model once, and leave some outputs where they are for a later run.

        Args:
            inputs: Arrays by input name.
            kept: The other inputs by name, as an earlier call or ``to_value`` and
                ``empty_value`` returned them.
            keep: Outputs to leave in the runtime's memory.

        Returns:
            Arrays of the other outputs, and the kept outputs, both by output name.

        Raises:
            UsageError: an input is missing, unknown, or of another type or rank.
        """
        feeds = self._checked_feeds(inputs, kept)
        types = {s.name: s.dtype for s in self.inputs}
        values = {name: _ort_value(array, types[name]) for name, array in feeds.items()}
        try:
            binding = self._session.io_binding()
            for name, value in {**values, **kept}.items():
                binding.bind_ortvalue_input(name, value)
            for output in self.outputs:
                binding.bind_output(output.name, self._device if output.name in keep else "cpu")
            self._session.run_with_iobinding(binding)
            results = binding.get_outputs()
        except Exception as error:  # onnxruntime raises its own kinds, none of them public
            raise MoeExportError(f"ONNX Runtime could not run the model: {error}") from error
        named = {s.name: value for s, value in zip(self.outputs, results, strict=True)}
        arrays = {n: read_ort_value(value) for n, value in named.items() if n not in keep}
        return arrays, {name: named[name] for name in keep}

    def end_profile(self) -> Path:
        """Write the profile of all runs so far, which ends it, and say where."""
        return Path(self._session.end_profiling())

    def to_value(self, array: Array) -> Any:  # noqa: ANN401 - onnxruntime has no types
        """``array`` in the runtime's memory, to be passed as a kept input."""
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device)

    def empty_value(self, shape: Sequence[int], dtype: str) -> Any:  # noqa: ANN401 - onnxruntime has no types
        """A tensor without elements in the runtime's memory, to be passed as a kept input.

        Args:
            shape: With a 0 in it.
            dtype: ``float32``, ``float16`` or ``bfloat16``, which NumPy does not have.
        """
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return make(tuple(shape), _ONNX_TYPES[dtype], self._device)

    def _checked_feeds(
        self, inputs: Mapping[str, Array], kept: Collection[str]
    ) -> dict[str, Array]:
        feeds = {s.name: _checked(s, inputs) for s in self.inputs if s.name not in kept}
        if unknown := sorted(set(inputs) - set(feeds)):
            raise UsageError(f"no input {', '.join(unknown)}; the model takes {', '.join(feeds)}")
        return feeds


def _signatures(values: Sequence[Any]) -> tuple[Signature, ...]:
    return tuple(
        Signature(v.name, v.type, tuple(d if isinstance(d, int) else str(d) for d in v.shape))
        for v in values
    )


def _ort_value(array: Array, dtype: str) -> Any:  # noqa: ANN401 - onnxruntime has no types
    import onnxruntime

    if dtype == _BFLOAT16:
        make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
        return make(round_to_bfloat16(array), _ONNX_TYPES["bfloat16"])
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _checked(signature: Signature, inputs: Mapping[str, Array]) -> Array:
    name = signature.name
    if name not in inputs:
        raise UsageError(f"input {name} is missing; found {', '.join(inputs) or 'none'}")
    array = np.asarray(inputs[name])
    wanted = _NUMPY_TYPES.get(signature.dtype)
    if wanted == np.float16 and array.dtype == np.float32:
        array = array.astype(wanted)
    if wanted is not None and array.dtype != wanted:
        raise UsageError(f"input {name} must be {np.dtype(wanted).name}; found {array.dtype.name}")
    fits = array.ndim == len(signature.shape) and all(
        isinstance(want, str) or want == have
        for want, have in zip(signature.shape, array.shape, strict=False)
    )
    if not fits:
        raise UsageError(f"input {name} must be {list(signature.shape)}; found {list(array.shape)}")
    return np.ascontiguousarray(array)
