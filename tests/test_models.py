"""Victims: architectures, weights, checkpoints, and where a network can be opened."""

from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from benchmark.checkpoints import check_input, fingerprint, load_into, read_state
from benchmark.config import load_config
from benchmark.data import DataRequest, Dataset, Split
from benchmark.errors import BenchError, DataError, RegistryError, SpecError
from benchmark.loading import _laid_out
from benchmark.victim import ModelRequest, Victim
from registry.datasets.fashion_mnist import fashion_mnist
from registry.datasets.mnist import mnist
from registry.models import fashion_cnn, mnist_cnn, resnet_cifar, timm_zoo, torchvision_zoo
from registry.models.recipes import fashion_cnn as recipe_fashion
from registry.models.recipes import mnist_cnn as recipe_mnist
from registry.models.recipes.training import measure
from registry.models.resnet_cifar import Block, CifarResNet

RESNETS = {
    "resnet20": (3, 269_722),
    "resnet32": (5, 464_154),
    "resnet44": (7, 658_586),
    "resnet56": (9, 853_018),
}
zoo = torchvision.models


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def victim_of(network, channels=3):
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Victim(network, mean=mean, std=std, num_classes=10)


def request(checkpoint=None, *, argument="", classes=10, shape=(3, 32, 32)):
    return ModelRequest(argument, checkpoint, classes, shape)


def shared(variable, *parts):
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    path = Path(os.environ[variable], *parts)
    if not path.is_file():
        pytest.skip(f"'{path}' is not there")
    return path


# --- networks of the registry ---


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_has_the_size_of_the_paper(name):
    blocks, parameters = RESNETS[name]
    network = CifarResNet(blocks, 10)
    assert sum(p.numel() for p in network.parameters()) == parameters
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert f"resnet{len(layers)}" == name
    assert victim_of(network).stages() == ("layer1", "layer2", "layer3")


def test_shortcut_subsamples_and_pads_with_zero_channels():
    maps = torch.rand(2, 16, 8, 8)
    out = Block(16, 32, 2).shortcut(maps)
    assert torch.equal(out[:, 8:24], maps[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any()
    assert Block(16, 16, 1).shortcut(maps) is maps


def test_block_without_branch_is_its_shortcut():
    block = Block(16, 32, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    maps = torch.rand(2, 16, 8, 8)
    assert torch.equal(block(maps), block.shortcut(maps))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy"), [("resnet20", 0.915), ("resnet56", 0.926)])
def test_resnet_accuracy(name, accuracy):
    table = pd.read_parquet(shared("QUERYBENCH_DATA", "cifar10", "test-1000.parquet"))
    weights = shared("QUERYBENCH_WEIGHTS", f"cifar10-{name}.safetensors")
    victim = getattr(resnet_cifar, name)(request(weights))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in table["image"]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    with torch.no_grad():
        found = torch.cat([victim(batch).argmax(dim=1) for batch in images.split(100)])
    assert (found.numpy() == table["label"]).mean() == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 224, 224)])
def test_resnet_refuses_other_images(shape):
    with pytest.raises(SpecError) as error:
        resnet_cifar.resnet20(request(shape=shape))
    one_line(error, "3x32x32", "x".join(map(str, shape)))


def test_resnet_without_weights_says_how_to_give_them():
    with pytest.raises(DataError) as error:
        resnet_cifar.resnet44(request())
    one_line(error, "--checkpoint", "cifar10-resnet44.safetensors")


SHIPPED = {
    "mnist-cnn": (mnist_cnn.mnist_cnn, mnist_cnn.SHIPPED, mnist, 0.98),
    "fashion-cnn": (fashion_cnn.fashion_cnn, fashion_cnn.SHIPPED, fashion_mnist, 0.91),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_victim_is_what_its_record_says(name):
    entry, shipped, dataset, least = SHIPPED[name]
    record = json.loads(shipped.weights.with_suffix(".json").read_text(encoding="utf-8"))
    victim = entry(request(shape=(1, 28, 28)))
    assert record["fingerprint"] == fingerprint(victim.network)
    assert record["parameters"] == sum(p.numel() for p in victim.network.parameters())
    assert record["accuracy"]["eval"] > least
    assert victim.features(torch.rand(2, 1, 28, 28)).shape == (2, shipped.widths[-1])
    assert victim.stages() == ("layer1", "layer2", "layer3")
    try:
        data = dataset(DataRequest("", load_config().data_root))
    except DataError as error:
        pytest.skip(str(error))
    assert record["data"]["fingerprint"] == data.fingerprint
    for split in (Split.CALIBRATE, Split.EVAL):
        # Other processors may round a borderline image to the other side.
        assert measure(victim, data, split) == pytest.approx(record["accuracy"][split], abs=0.0011)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_victim_refuses_other_images_and_classes(name):
    entry = SHIPPED[name][0]
    with pytest.raises(SpecError) as error:
        entry(request())
    one_line(error, f"'{name}'", "1x28x28", "3x32x32")
    with pytest.raises(DataError) as error:
        entry(request(classes=26, shape=(1, 28, 28)))
    one_line(error, "the checkpoint has 10 classes, the data set 26")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_trains_on_the_first_images_of_the_split_and_repeats_itself(name):
    recipe = {"mnist-cnn": recipe_mnist.RECIPE, "fashion-cnn": recipe_fashion.RECIPE}[name]
    assert recipe.shipped is SHIPPED[name][1]
    record = json.loads(recipe.shipped.weights.with_suffix(".json").read_text(encoding="utf-8"))
    assert (record["images"], record["epochs"]) == (recipe.images, recipe.epochs)
    assert record["recipe"].endswith(f".{recipe.name}") and record["data"]["name"] == recipe.data
    labels, seen = np.tile(np.arange(10), 5), []

    def read(ids):
        seen.append(ids.tolist())
        return torch.rand(len(ids), 1, 28, 28, generator=torch.Generator().manual_seed(0))

    splits = {Split.EVAL: labels[:0], Split.TRAIN: np.arange(50)[::-1].copy()}
    data = Dataset("toy", labels, tuple("0123456789"), splits, read, "f")
    small, prints = replace(recipe, images=20, epochs=1), []
    for _ in range(2):
        torch.manual_seed(0)
        network = recipe.shipped.network(10)
        small.train(network, data)
        prints.append(fingerprint(network))
        assert not network.training
    assert seen == [list(range(49, 29, -1))] * 2
    assert prints[0] == prints[1]


def test_garments_are_mirrored_or_not_and_shifted_by_whole_pixels():
    images = torch.zeros(400, 1, 28, 28)
    images[:, 0, 10, 5] = 1.0
    shown = recipe_fashion.distort(images, torch.Generator().manual_seed(0))
    places = {tuple(place) for place in (shown[:, 0] > 0.5).nonzero()[:, 1:].tolist()}
    whole = (shown - shown.round()).abs().max()
    assert whole < 1e-4 and shown.sum().item() == pytest.approx(400, rel=1e-4)
    reach = range(-recipe_fashion.SHIFT, recipe_fashion.SHIFT + 1)
    assert places == {(10 + y, x + dx) for y in reach for x in (5, 22) for dx in reach}


# --- libraries ---


def test_zoo_loads_a_checkpoint(tmp_path):
    for entry, network in (
        (timm_zoo.timm, timm.create_model("resnet10t", num_classes=10)),
        (torchvision_zoo.torchvision, zoo.shufflenet_v2_x0_5(num_classes=10)),
    ):
        name = "resnet10t" if entry is timm_zoo.timm else "shufflenet_v2_x0_5"
        path = tmp_path / f"{name}.safetensors"
        save_file(network.state_dict(), path)
        victim = entry(request(path, argument=name))
        assert fingerprint(victim.network) == fingerprint(network)
        assert not victim.training
        with pytest.raises(DataError) as error:
            entry(request(path, argument=name, classes=7))
        one_line(error, "the checkpoint has 10 classes, the data set 7")


def test_timm_takes_grey_images(tmp_path):
    network = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    save_file(network.state_dict(), tmp_path / "grey.safetensors")
    given = request(tmp_path / "grey.safetensors", argument="resnet10t", shape=(1, 28, 28))
    victim = timm_zoo.timm(given)
    assert victim.mean.shape == (1, 1, 1, 1)
    with pytest.raises(SpecError) as error:
        torchvision_zoo.torchvision(request(argument="resnet18", shape=(1, 28, 28)))
    one_line(error, "3 channels, not 1")


@pytest.mark.parametrize("entry", [timm_zoo.timm, torchvision_zoo.torchvision])
def test_zoo_refuses_what_cannot_work(entry):
    with pytest.raises(RegistryError) as error:
        entry(request(argument="resnet118"))
    one_line(error, "resnet118", "Did you mean", "resnet18")
    with pytest.raises(SpecError) as error:
        entry(request(argument="resnet18"), pretrained=False)
    one_line(error, "random weights", "--checkpoint")
    with pytest.raises(SpecError) as error:
        entry(request(argument="resnet18"))
    one_line(error, "1000 classes", "the data set 10")


def test_timm_names_the_weights_that_exist():
    with pytest.raises(RegistryError) as error:
        timm_zoo.timm(request(argument="resnet18.a9_in1k", classes=1000))
    one_line(error, "resnet18.a9_in1k", "resnet18.a1_in1k")
    bare = next(name for name in timm.list_models() if not timm.models.is_model_pretrained(name))
    with pytest.raises(DataError) as error:
        timm_zoo.timm(request(argument=bare))
    one_line(error, "no weights", "--checkpoint")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_zoo_without_network_asks_for_a_checkpoint(library, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(zoo, "get_model", fail)
    entry = {"timm": timm_zoo.timm, "torchvision": torchvision_zoo.torchvision}[library]
    with pytest.raises(DataError) as error:
        entry(request(argument="resnet18", classes=1000))
    one_line(error, "cannot be downloaded", "ConnectionError", "--checkpoint")


def test_pretrained_torchvision_uses_the_normalisation_of_its_weights(monkeypatch):
    network = zoo.shufflenet_v2_x0_5(weights=None)
    monkeypatch.setattr(zoo, "get_model", lambda name, weights: network)
    victim = torchvision_zoo.torchvision(request(argument="shufflenet_v2_x0_5", classes=1000))
    assert victim.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_wrong_image_size_is_found_at_once():
    victim = victim_of(zoo.VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=10))
    check_input(victim, (3, 32, 32), "model 'vit'")
    with pytest.raises(SpecError) as error:
        check_input(victim, (3, 40, 40), "model 'vit'")
    one_line(error, "model 'vit'", "3x40x40")
    with pytest.raises(SpecError) as error:
        check_input(victim_of(nn.Flatten()), (3, 8, 8), "model 'flat'")
    one_line(error, "(1, 192)", "(1, 10)")


# --- checkpoints ---


def test_read_state_unwraps(tmp_path):
    weight = torch.rand(2, 3)
    forms = {
        "plain.pt": {"weight": weight},
        "wrapped.pth": {"state_dict": {"module.weight": weight}, "epoch": 3},
        "model.th": {"model": {"weight": weight}},
        "lightning.ckpt": {"state_dict": {"weight": weight}, "callbacks": {}},
    }
    for name, content in forms.items():
        torch.save(content, tmp_path / name)
    save_file({"module.weight": weight}, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        state = read_state(path)
        assert list(state) == ["weight"]
        assert torch.equal(state["weight"], weight)


def test_prefix_stays_unless_every_name_has_it(tmp_path):
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.safetensors")
    assert set(read_state(tmp_path / "a.safetensors")) == {"module.a", "b"}


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "th", "ckpt", "bin", "d"])
def test_missing_corrupt_and_unknown_files(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    with pytest.raises(DataError) as error:
        read_state(path)
    one_line(error, str(path), "does not exist")
    path.mkdir()
    with pytest.raises(DataError) as error:
        read_state(path)
    one_line(error, str(path))
    path.rmdir()
    for content in (b"", b"not weights at all", b"\x80\x02}q\x00(X", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            read_state(path)
        one_line(error, str(path))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated_file(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    state = {"weight": torch.rand(100, 100)}
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as error:
        read_state(path)
    one_line(error, str(path))


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_code_is_refused_and_never_runs(tmp_path):
    trace = tmp_path / "executed"
    torch.save({"state_dict": {"weight": Bomb(trace)}}, tmp_path / "new.pt")
    torch.save(Bomb(trace), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(trace)))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"model": {}, "args": SimpleNamespace(a=1)}, tmp_path / "namespace.pt")
    for path in sorted(tmp_path.glob("*.pt")):
        with pytest.raises(DataError) as error:
            read_state(path)
        one_line(error, str(path), "Save a state_dict")
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {}, {"a": 1}, {"a": [torch.ones(1)]}])
def test_files_without_named_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError) as error:
        read_state(tmp_path / "a.pt")
    one_line(error, "a.pt", "tensor")


def test_wrong_classes(tmp_path):
    save_file(CifarResNet(3, 100).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(DataError) as error:
        resnet_cifar.resnet20(request(tmp_path / "a.safetensors"))
    one_line(error, "a.safetensors", "the checkpoint has 100 classes, the data set 10")


def test_wrong_keys_and_shapes(tmp_path):
    path = Path("a.pt")
    state = CifarResNet(5, 10).state_dict()
    with pytest.raises(DataError) as error:
        load_into(CifarResNet(3, 10), state, path)
    one_line(error, "a.pt", "has 'layer1.3.conv1.weight'", "and 69 more")
    with pytest.raises(DataError) as error:
        load_into(CifarResNet(7, 10), state, path)
    one_line(error, "a.pt", "lacks 'layer1.5.conv1.weight'")
    with pytest.raises(DataError) as error:
        load_into(CifarResNet(3, 10), {"weight": torch.ones(1)}, path)
    one_line(error, "lacks 'conv1.weight'", "has 'weight'")
    with pytest.raises(DataError) as error:
        load_into(CifarResNet(5, 10), {**state, "conv1.weight": torch.ones(16, 1, 3, 3)}, path)
    one_line(error, "'conv1.weight' is (16, 1, 3, 3), wanted (16, 3, 3, 3)")


def test_a_refused_checkpoint_changes_nothing():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = fingerprint(network)
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)).state_dict()
    with pytest.raises(BenchError):
        load_into(network, other, Path("a.pt"))
    assert fingerprint(network) == before


def test_fingerprint_sees_every_bit_and_no_use():
    network = zoo.resnet18(num_classes=10)
    victim = victim_of(network)
    before = fingerprint(victim)
    assert len(before) == 16 and int(before, 16) >= 0
    victim.features(torch.rand(2, 3, 32, 32))
    assert fingerprint(victim) == before
    network.bn1.running_var[3] += 1e-7
    assert fingerprint(victim) != before


@pytest.mark.parametrize("views", [False, True])
def test_weights_lie_with_channels_last_unless_the_network_views_its_features(views):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 2)

        def forward(self, images):
            maps = self.conv(images)
            return self.head(maps.view(len(maps), -1) if views else maps.flatten(1))

    victim = Victim(Network(), mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=2)
    images = torch.rand(2, 3, 8, 8)
    expected = victim(images)
    found = _laid_out(victim, images[:1])
    assert torch.allclose(found(images), expected, atol=1e-5)
    last = found.network.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert last != views
