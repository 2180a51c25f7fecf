"""What a user may write for inputs and axes, and when an output is in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_export.errors import UsageError
from moe_export.plan import AxisSpec, BuildPlan, InputSpec, parse_compute_capability


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=2,16,64", InputSpec("x", (2, 16, 64), "float32")),
        ("input_ids=2,11:int64", InputSpec("input_ids", (2, 11), "int64")),
        ("x=7", InputSpec("x", (7,), "float32")),
        (" x=3,4:bool ", InputSpec("x", (3, 4), "bool")),
        ("x=1:bfloat16", InputSpec("x", (1,), "bfloat16")),
    ],
)
def test_input_spec_reads_name_sizes_and_type(text, expected):
    assert InputSpec.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x=",
        "=2",
        "x=2,",
        "x=,2",
        "x=2x3",
        "x=-1",
        "x=2.5",
        "x=2:",
        "x=2 ,3",
        "a.b=2",
        "x=batch",
    ],
)
def test_input_spec_shows_the_form_for_other_text(text):
    with pytest.raises(UsageError, match=r"expected NAME=SIZE,SIZE,...\[:DTYPE\]") as caught:
        InputSpec.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("dtype", ["fp32", "uint8", "Float32", "complex64"])
def test_input_spec_lists_the_types_for_another_one(dtype):
    with pytest.raises(UsageError, match=f"{dtype} is not one of float32, .*int64"):
        InputSpec.parse(f"x=2:{dtype}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x.0", AxisSpec("x", 0)),
        ("input_ids.1=1..64", AxisSpec("input_ids", 1, 1, 64)),
        ("x.12=3..3", AxisSpec("x", 12, 3, 3)),
        (" x.0=0..8 ", AxisSpec("x", 0, 0, 8)),
    ],
)
def test_axis_spec_reads_axis_and_range(text, expected):
    assert AxisSpec.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "x", "x.", ".0", "x.-1", "x.a", "x.0=", "x.0=1", "x.0=1..", "x.0=1-4", "x.0=..4"]
)
def test_axis_spec_shows_the_form_for_other_text(text):
    with pytest.raises(UsageError, match=r"expected NAME.AXIS or NAME.AXIS=MIN..MAX") as caught:
        AxisSpec.parse(text)
    assert repr(text) in str(caught.value)


def test_axis_spec_refuses_an_empty_range():
    with pytest.raises(UsageError, match=r"'x.0=5..4': the range is empty"):
        AxisSpec.parse("x.0=5..4")


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_that_is_not_there_is_free(tmp_path, overwrite):
    BuildPlan(output=tmp_path / "new" / "bundle", overwrite=overwrite).check_output()


@pytest.mark.parametrize("overwrite", [False, True])
def test_empty_folder_is_free(tmp_path, overwrite):
    BuildPlan(output=tmp_path, overwrite=overwrite).check_output()


@pytest.mark.parametrize("content", [["manifest.json"], ["notes.txt"]])
def test_existing_output_needs_overwrite(tmp_path, content):
    for name in content:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"exists: .*--overwrite"):
        BuildPlan(output=tmp_path).check_output()


@pytest.mark.parametrize("content", [["manifest.json"], ["manifest.json", "notes.txt"]])
def test_bundle_may_be_overwritten(tmp_path, content):
    for name in content:
        (tmp_path / name).touch()
    BuildPlan(output=tmp_path, overwrite=True).check_output()


def test_folder_of_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"is not a bundle \(it has no manifest.json\)"):
        BuildPlan(output=tmp_path, overwrite=True).check_output()


def test_file_is_never_overwritten(tmp_path):
    path = tmp_path / "model.onnx"
    path.touch()
    with pytest.raises(UsageError, match="is not a bundle"):
        BuildPlan(output=path, overwrite=True).check_output()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "q4"}, "'q4' is none of fp32, fp16, bf16, int8, int4, fp8, mxfp4, source"),
        ({"weights": "int8", "target": "portable"}, "--weights int8 needs --target cpu"),
        ({"weights": "int4", "block_size": 48}, "--block-size 48 is none of 32, 64, 128"),
        ({"weights": "int8", "block_size": 32}, "--block-size belongs to --weights int4"),
        ({"block_size": 32}, "--block-size belongs to --weights int4; weights are fp32"),
        ({"weights": "mxfp4", "zero_points": True}, "--zero-points belongs to --weights int4"),
        ({"weights": "int4", "max_error": 0.0}, "--max-error must be above 0"),
        ({"weights": "int4", "max_error": float("nan")}, "--max-error must be above 0"),
        ({"max_error": 0.1}, "--max-error bounds what smaller weights cost: give --weights"),
        ({"weights": "int4", "max_error": 0.1, "verify": False}, "needs the comparison"),
    ],
)
def test_weights_that_do_not_go_with_the_rest_are_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        BuildPlan(output=tmp_path, **options)


def test_int4_blocks_are_of_128_unless_asked_for(tmp_path):
    assert BuildPlan(output=tmp_path, weights="int4").int4_block == 128
    assert BuildPlan(output=tmp_path, weights="int4", block_size=32).int4_block == 32


@pytest.mark.parametrize("text", ["8.9", "89", "sm_89", "SM89", " 8.9 "])
def test_a_compute_capability_may_be_spelled_in_any_way(text):
    assert parse_compute_capability(text) == "8.9"
    assert parse_compute_capability("sm_120") == "12.0"


@pytest.mark.parametrize("text", ["", "8", "ada", "8.9.0", "1234"])
def test_other_compute_capabilities_show_the_form(text):
    with pytest.raises(UsageError, match=r"expected MAJOR\.MINOR, as in 8\.9"):
        parse_compute_capability(text)


RTX = {"target": "tensorrt-rtx"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "gpu"}, "'gpu' is none of cpu, portable, tensorrt-rtx, tensorrt, cuda"),
        ({"dtype": "fp16"}, "--dtype fp16 needs --target tensorrt-rtx or tensorrt or cuda"),
        ({"dtype": "half", **RTX}, "'half' is none of fp32, fp16, bf16"),
        ({"weights": "fp8"}, "--weights fp8 needs --target .* or cuda; cpu takes"),
        ({"weights": "mxfp4", **RTX}, "takes source, .*MXFP4 checkpoint are dequantized"),
        ({"weights": "fp16", "dtype": "bf16", **RTX}, "--weights fp16 needs --dtype fp16"),
        ({"weights": "fp32", "dtype": "bf16", **RTX}, "source, bf16, int8, int4 or fp8"),
        ({"max_error": 0.1, "weights": "int8", **RTX}, "for tensorrt-rtx says what rounding"),
        ({"telemetry": True, **RTX}, "--telemetry needs --target cpu or portable"),
        ({"compute_capabilities": ("8.0",)}, "--compute-capability belongs to --target tensorrt-"),
        ({"version_compatible": True, **RTX}, "--version-compatible belongs to --target tensorrt$"),
        ({"hardware_compatible": True}, "--hardware-compatible belongs to --target tensorrt$"),
        ({"timing_cache": "cache", **RTX}, "--timing-cache belongs to --target tensorrt$"),
        ({"moe": "native"}, "--moe belongs to --target tensorrt-rtx or tensorrt$"),
        ({"moe": "other", **RTX}, "moe 'other' is none of auto, native, plugin"),
        ({"moe": "native", "weights": "fp8", **RTX}, "--weights fp8 needs --moe plugin: .*scales"),
        (
            {"moe": "native", "hardware_compatible": True, "target": "tensorrt"},
            "--hardware-compatible needs --moe plugin",
        ),
    ],
)
def test_options_of_engines_are_checked_together(options, message):
    with pytest.raises(UsageError, match=message):
        BuildPlan(output=Path("b"), **options)


def test_weights_that_do_not_suit_the_checkpoints_type_are_refused_once_it_is_known():
    plan = BuildPlan(output=Path("b"), weights="fp16", **RTX)
    assert plan.with_dtype("fp16").dtype == "fp16"
    with pytest.raises(UsageError, match="--weights fp16 needs --dtype fp16"):
        plan.with_dtype("bf16")


def test_a_target_chooses_how_weights_are_stored_unless_it_is_told():
    assert BuildPlan(output=Path("b")).expert_weights == "fp32"
    assert BuildPlan(output=Path("b"), **RTX).expert_weights == "source"
    assert BuildPlan(output=Path("b"), weights="int8", **RTX).expert_weights == "int8"
    assert BuildPlan(output=Path("b"), dtype="fp16", **RTX).with_dtype("bf16").dtype == "fp16"
    assert BuildPlan(output=Path("b")).with_dtype("bf16").dtype == "fp32"
