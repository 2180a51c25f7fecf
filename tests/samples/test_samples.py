"""The numbered samples run as the quickstart runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def run(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(SAMPLES)}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_train_export_and_run(tmp_path):
    trained = run(SAMPLES / "01_train_digits.py", tmp_path, cwd=tmp_path)
    accuracy = trained.split("accuracy: ")[1].split()[0]
    assert float(accuracy) > 0.9
    built = run(
        "-m", "moe_export", "build", "model.pt", "-o", "bundle", "--trust",
        "--input", "images=4,64", cwd=tmp_path,
    )  # fmt: skip
    assert "parity passed" in built
    ran = run(SAMPLES / "02_run_bundle.py", tmp_path, cwd=tmp_path)
    assert f"accuracy:  {accuracy}, without PyTorch" in ran
    assert "differ from eager: 0" in ran


def test_generate_text(tmp_path):
    """A model with a tokenizer, from the folder to the text, and from the bundle again."""
    said = "the router sends every token to two experts and adds what both of them say"
    first = run(SAMPLES / "03_generate.py", cwd=tmp_path)
    assert "parity passed" in first
    assert first.endswith(f"{said}\n16 tokens, without PyTorch\n")
    again = run(SAMPLES / "03_generate.py", "tiny-moe-bundle", "adds what", cwd=tmp_path)
    assert again == "\nadds what both of them say\n7 tokens, without PyTorch\n"
