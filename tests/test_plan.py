"""What a user may write for inputs and axes, and when an output is in the way."""

from __future__ import annotations

import pytest

from moe_export.errors import UsageError
from moe_export.plan import AxisSpec, BuildPlan, InputSpec


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
