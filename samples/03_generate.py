"""Continue a text without PyTorch, and print the tokens as they come.

python 03_generate.py                    makes a tiny model with a tokenizer, and exports it
python 03_generate.py FOLDER "A prompt"  exports a Hugging Face folder that has tokenizer.json
python 03_generate.py BUNDLE "A prompt"  takes a bundle that was built with --with-past
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import moe_export


def find_bundle(source: str | None) -> str:
    """``source`` if it is a bundle; else one that is exported from it into the current folder."""
    if source is not None and (Path(source) / "manifest.json").is_file():
        return source
    if source is None:
        source = "tiny-moe"
        script = Path(__file__).with_name("tiny_text_moe.py")
        subprocess.run([sys.executable, str(script), source], check=True)
    build = ["build", source, "-o", f"{Path(source).name}-bundle", "--with-past", "--overwrite"]
    subprocess.run([sys.executable, "-m", "moe_export", *build], check=True)
    return build[3]


def main(source: str | None = None, prompt: str = "the router sends") -> None:
    """Print a prompt and what the model makes of it."""
    bundle = moe_export.load(find_bundle(source))
    tokenizer = bundle.load_tokenizer()
    ids = tokenizer.encode(prompt).ids
    said = tokenizer.decode(ids)
    print(f"\n{said}", end="", flush=True)
    for tokens in bundle.stream([ids], max_new_tokens=60):
        ids.append(int(tokens[0]))
        text = tokenizer.decode(ids)  # all of them: a character may take several tokens
        print(text[len(said) :], end="", flush=True)
        said = text
    assert "torch" not in sys.modules, "a bundle runs without PyTorch"
    print(f"\n{len(ids)} tokens, without PyTorch")


if __name__ == "__main__":
    main(*sys.argv[1:3])
