"""``.pt`` files: what is loaded, what is refused, and that nothing runs without trust."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.sources.module_file import load_module_file


class Attack:
    """Creates the file ``path`` when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def module_path(monkeypatch):
    """Undo what a test does to ``sys.path`` and to the modules that are loaded."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def run_script(folder, text):
    """Run ``text`` as a script of its own in ``folder``."""
    (folder / "save.py").write_text(textwrap.dedent(text))
    subprocess.run([sys.executable, "save.py"], cwd=folder, check=True)
    (folder / "save.py").unlink()


def test_trusted_module_is_loaded(tmp_path, module_path):
    model = nn.Sequential(nn.Linear(3, 2))
    torch.save(model, tmp_path / "model.pt")
    loaded = load_module_file(tmp_path / "model.pt", trust=True)
    assert torch.equal(loaded[0].weight, model[0].weight)


def test_module_may_import_code_beside_the_file(tmp_path, module_path):
    code = "from torch import nn\nclass Neighbor(nn.Module):\n    pass\n"
    (tmp_path / "neighbor_of_the_file.py").write_text(code)
    run_script(
        tmp_path,
        """
        import torch, neighbor_of_the_file
        torch.save(neighbor_of_the_file.Neighbor(), "model.pt")
        """,
    )
    assert type(load_module_file(tmp_path / "model.pt", trust=True)).__name__ == "Neighbor"


def test_module_is_refused_without_trust(tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "model.pt")
    with pytest.raises(UsageError, match="unpickling runs code: pass --trust"):
        load_module_file(tmp_path / "model.pt", trust=False)


@pytest.mark.parametrize("save", ["zip", "legacy", "plain"])
def test_malicious_pickle_does_not_run_without_trust(tmp_path, save):
    path, ran = tmp_path / "model.pt", tmp_path / "ran"
    if save == "plain":
        path.write_bytes(pickle.dumps(Attack(ran)))
    else:
        torch.save(Attack(ran), path, _use_new_zipfile_serialization=save == "zip")
    with pytest.raises(UsageError, match="--trust"):
        load_module_file(path, trust=False)
    assert not ran.exists()


def test_the_malicious_pickle_would_run_with_trust(tmp_path, module_path):
    torch.save(Attack(tmp_path / "ran"), tmp_path / "model.pt")
    with pytest.raises(UsageError, match="holds a TextIOWrapper, not a module"):
        load_module_file(tmp_path / "model.pt", trust=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("trust", [False, True])
def test_state_dict_is_refused_with_the_way_out(tmp_path, module_path, trust):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"holds a OrderedDict, not a module: .*MODULE:CALLABLE"):
        load_module_file(tmp_path / "weights.pt", trust=trust)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("trust", [False, True])
def test_torchscript_archive_is_refused(tmp_path, trust):
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)), tmp_path / "model.pt")
    with pytest.raises(UnsupportedModelError, match="TorchScript archive"):
        load_module_file(tmp_path / "model.pt", trust=trust)


def test_class_of_main_is_refused_with_the_way_out(tmp_path, module_path):
    run_script(
        tmp_path,
        """
        import torch
        class DefinedInTheScript(torch.nn.Module):
            pass
        torch.save(DefinedInTheScript(), "model.pt")
        """,
    )
    with pytest.raises(UsageError, match=r"DefinedInTheScript.*move them to a module") as caught:
        load_module_file(tmp_path / "model.pt", trust=True)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_missing_module_is_named(tmp_path, module_path):
    code = "from torch import nn\nclass Gone(nn.Module):\n    pass\n"
    (tmp_path / "module_that_went_away.py").write_text(code)
    run_script(
        tmp_path,
        """
        import torch, module_that_went_away
        torch.save(module_that_went_away.Gone(), "model.pt")
        """,
    )
    (tmp_path / "module_that_went_away.py").unlink()
    with pytest.raises(UsageError, match="needs module module_that_went_away: put it beside"):
        load_module_file(tmp_path / "model.pt", trust=True)


def test_code_that_lost_the_class_is_refused(tmp_path, module_path):
    path = tmp_path / "module_that_changed.py"
    path.write_text("from torch import nn\nclass Old(nn.Module):\n    pass\n")
    run_script(
        tmp_path,
        """
        import torch, module_that_changed
        torch.save(module_that_changed.Old(), "model.pt")
        """,
    )
    path.write_text("# The class is gone.\n")
    with pytest.raises(UsageError, match=r"does not fit the code it imports: .*Old"):
        load_module_file(tmp_path / "model.pt", trust=True)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a pickle", b"("])
def test_file_of_another_kind_is_refused(tmp_path, module_path, trust, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.pt"):
        load_module_file(path, trust=trust)


@pytest.mark.parametrize("trust", [False, True])
def test_truncated_file_is_refused(tmp_path, module_path, trust):
    path = Path(tmp_path / "model.pt")
    torch.save(nn.Linear(30, 20), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UsageError, match=r"model\.pt"):
        load_module_file(path, trust=trust)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("content", [b"\x80", b"\x80\x02.", b"PK\x03\x04", b"", b"\x00" * 64])
def test_bytes_that_torch_did_not_write(tmp_path, content, trust):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.pt"):
        load_module_file(path, trust=trust)
