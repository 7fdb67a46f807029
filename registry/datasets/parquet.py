"""Any labelled images in Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from benchmark.data import DataRequest, Dataset
from benchmark.errors import DataError
from benchmark.images import Crop, reader, shared_splits
from benchmark.parquet import read_parquet
from benchmark.registry import Source, dataset

_SEED = 17


@dataset(
    source=Source(
        paper="Hugging Face: layout of image data sets (column image with bytes, column label)",
        url="https://huggingface.co/docs/datasets/image_dataset",
        year=2022,
    ),
    argument="PATH",
)
def parquet(
    request: DataRequest,
    *,
    size: Annotated[int, Field(gt=0)] | None = None,
    resize: Annotated[int, Field(gt=0)] | None = None,
    eval_share: Annotated[float, Field(gt=0, le=1)] = 0.5,
) -> Dataset:
    """Images of a Parquet file, or of a folder of them, in the Hugging Face layout.

    Args:
        request: Its argument is the path.
        size: Side of the centre crop in pixels; needed when images differ in size.
        resize: Shorter side before the crop in pixels; size / 0.875 if not given.
        eval_share: Share attacked; the rest is halved between calibrate and train.

    Raises:
        DataError: If nothing is there, or a file is not as it should be.
        SpecError: If `size` and `resize` do not go together.
    """
    path = Path(request.argument).expanduser().resolve()
    crop = Crop.of("data set 'parquet'", size, resize)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"folder '{path}' holds no *.parquet file")
    table = read_parquet(files)
    names = table.class_names or tuple(str(n) for n in range(int(table.labels.max()) + 1))
    return Dataset(
        name=f"parquet:{path.name}",
        labels=table.labels,
        class_names=names,
        splits=shared_splits(table.labels, eval_share, _SEED),
        read=reader(table.pictures, crop, "parquet:PATH"),
        fingerprint=table.fingerprint,
    )
