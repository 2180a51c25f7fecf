"""``inspect DIR --inputs`` and what it draws."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from moe_export.cli.load_plot import plot_load
from moe_export.cli.load_table import draw_bars, draw_load
from moe_export.cli.main import main
from moe_export.telemetry.expert_load import ExpertLoad
from moe_export.telemetry.record import CHOICES, TOKENS
from tests.telemetry.test_expert_load import load_of


def invoke(*args):
    return CliRunner().invoke(main, ["inspect", *map(str, args)])


def drawn(loads, *, width=200, every_expert=False):
    text = io.StringIO()
    console = Console(file=text, width=width, highlight=False)
    draw_load(console, loads, every_expert=every_expert)
    return text.getvalue()


def random_load(path, experts, tokens=100_000, dropped=0, what=CHOICES):
    random = np.random.default_rng(experts)
    share = random.dirichlet(np.full(experts, 0.5))
    return ExpertLoad(
        path, random.multinomial(tokens, share), share.astype(np.float32), dropped,
        "sigmoid of the router's logits, each token's over their sum", what,
    )  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs") / "x.npz"
    images = np.random.default_rng(2).standard_normal((50, 64)).astype(np.float32)
    np.savez(path, images=images)
    return path


@pytest.mark.parametrize("kind", ["counting", "plain"])
def test_every_layer_has_a_row(kind, inputs, request):
    result = invoke(request.getfixturevalue(kind), "--inputs", inputs)
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split() for line in result.output.splitlines() if line}
    for path in ("layers.0", "layers.1"):
        assert rows[path][1] == "100"  # 50 tokens, two experts each
        assert len(rows[path][2]) == 4  # a bar per expert


def test_json_has_every_number(counting, inputs):
    values = json.loads(invoke(counting, "--inputs", inputs, "--json").output)
    assert values["overload_factor"] == 2
    for layer in values["layers"]:
        tokens = np.array(layer["tokens_per_expert"])
        share = np.array(layer["mean_probability"])
        assert tokens.sum() == 100
        assert layer["balance"] == pytest.approx(4 * (tokens / 100 * share).sum(), rel=1e-5)
        assert layer["dead"] == np.flatnonzero(tokens == 0).tolist()


def test_verbose_adds_a_row_per_expert(counting, inputs):
    plain, verbose = (invoke(counting, "--inputs", inputs, *o).output for o in ((), ("-v",)))
    assert verbose.startswith(plain.split("MoE layer")[0])
    assert len(verbose.splitlines()) >= len(plain.splitlines()) + 2 * 4


@pytest.mark.parametrize("experts", [8, 256, 2048])
def test_the_table_fits_80_columns(experts):
    loads = [
        random_load(f"model.language_model.layers.{i}.feed_forward.experts", experts, dropped=i)
        for i in range(12)
    ]
    lines = drawn(loads).splitlines()
    assert max(map(len, lines)) <= 80
    assert all("…" not in line[1:] for line in lines)  # nothing but paths is cut
    assert sum("layers.1" in line or "feed_forward" in line for line in lines) >= 12


def test_paths_keep_the_end_that_tells_layers_apart():
    loads = [random_load(f"model.layers.{i}.mlp.experts", 8) for i in (9, 10)]
    assert "….layers.9.mlp.experts" in drawn(loads)
    assert "…layers.10.mlp.experts" in drawn(loads)


def test_bars_show_the_even_share_the_overload_and_the_idle():
    assert draw_bars(load_of([4, 4, 4, 4]), unicode=True) == "▄▄▄▄"
    assert draw_bars(load_of([0, 12, 2, 2]), unicode=True) == "·█▂▂"
    assert draw_bars(load_of([0, 12, 2, 2]), unicode=False) == "_#::"


def test_bars_of_many_experts_begin_with_the_fullest():
    tokens = np.ones(64, int)
    tokens[50:54] = 100
    bars = draw_bars(load_of(tokens), unicode=True)
    assert bars == "█" + "▁" * 15


def test_dead_and_overloaded_experts_are_named():
    text = drawn([load_of([90, 1, 0, 1, 1, 1, 0, 1, 1, 1], path="ffn")])
    assert "ffn: dead 2, 6" in text
    assert "ffn: over 0 (9.3x)" in text


def test_long_lists_say_how_many_more():
    assert "ffn: dead 1, 2, 3 and 4 more" in drawn([load_of([9] + [0] * 7, path="ffn")])


def test_a_layer_that_got_nothing_says_so():
    text = drawn([load_of([0, 0, 0], path="ffn")])
    assert "ffn: no expert got a token" in text
    assert "nan" not in text


def test_what_is_counted_as_dropped_is_said_of_each_kind_of_layer():
    text = drawn([random_load("a", 4), random_load("b", 4, what=TOKENS), random_load("c", 4)])
    assert f"{CHOICES} (a and 1 more)" in text
    assert f"{TOKENS} (b)" in text


def test_brackets_in_a_path_are_no_markup():
    assert "ffn[red]x" in drawn([load_of([1, 2], path="ffn[red]x")])


def test_every_expert_is_listed_on_request():
    text = drawn([load_of([3, 0, 1], path="ffn")], every_expert=True)
    assert [line.split()[:3] for line in text.splitlines()[-3:]] == [
        ["0", "3", "75.0%"], ["1", "0", "0.0%"], ["2", "1", "25.0%"],
    ]  # fmt: skip


def test_plot_writes_a_picture(counting, inputs, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "load.png"
    result = invoke(counting, "--inputs", inputs, "--plot", path)
    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {path}" in result.output.replace("\n", "")


def test_plot_of_many_layers_has_a_name_per_layer(tmp_path):
    pytest.importorskip("matplotlib")
    loads = [random_load(f"block.{i}.moe", 8 + i) for i in range(20)]
    plot_load(loads, tmp_path / "load.svg")
    text = (tmp_path / "load.svg").read_text()
    assert all(f"block.{i}.moe" in text for i in range(20))


def test_plot_without_matplotlib_says_how_to_get_it(counting, inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.backend_bases", raising=False)
    result = invoke(counting, "--inputs", inputs, "--plot", tmp_path / "load.png")
    assert result.exit_code == 4
    assert "pip install 'moe-export[plot]'" in result.output


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--plot", "x.png"), "add --inputs"),
        (("--input", "images=4,64"), "a bundle takes --inputs FILE"),
        (("--inputs", "missing.npz"), "not a readable .npz"),
    ],
    ids=["plot alone", "drawn input", "missing file"],
)
def test_wrong_usage_of_a_bundle_ends_with_2(counting, args, reason):
    result = invoke(counting, *args)
    assert result.exit_code == 2
    assert reason in result.output


@pytest.mark.parametrize("name", ["load.xyz", "load", "nowhere/load.png"])
def test_a_plot_that_cannot_be_written_is_refused_first(counting, inputs, tmp_path, name):
    pytest.importorskip("matplotlib")
    result = invoke(counting, "--inputs", inputs, "--plot", tmp_path / name)
    assert result.exit_code == 2
    assert "--plot" in result.output


def test_plot_of_a_model_is_refused():
    result = invoke("my_code:make_model", "--plot", "x.png")
    assert result.exit_code == 2
    assert "--plot needs a bundle" in result.output
