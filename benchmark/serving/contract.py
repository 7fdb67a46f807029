"""What a client and an endpoint say to each other; docs/endpoints.md is the contract in words."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from benchmark.scores import Scores
from benchmark.serving.shown import read_scores, written_scores

LONGEST = 100  # characters of a client's name
_AROUND = 4096  # bytes of a request besides its images

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]{0,99}$")]
Size = Annotated[int, Field(ge=1, le=10**6)]


class Description(BaseModel):
    """What `GET /` says.

    Attributes:
        contract: Name and version of the contract.
        name: Name of the classifier, as tables show it.
        num_classes: Number of classes K.
        shape: Shape of one image, (C, H, W).
        shows: What answers contain, as `--scores` is written.
        randomised: Two identical queries may get different answers.
        stateful: An answer may depend on earlier queries of the client.
        max_images: Images in a request at most.
        fingerprint: Hash of what answers: another classifier has another one.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    contract: Literal["querybench/1"] = "querybench/1"
    name: Name
    num_classes: Annotated[int, Field(ge=2, le=10**6)]
    shape: Annotated[tuple[Size, Size, Size], Field(strict=False)]
    shows: str
    randomised: bool
    stateful: bool
    max_images: Annotated[int, Field(ge=1)]
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]

    @field_validator("shows")
    @classmethod
    def _known(cls, value: str) -> str:
        return str(Scores.parse(value))

    @property
    def scores(self) -> Scores:
        """What answers contain."""
        return Scores.parse(self.shows)

    @property
    def identity(self) -> bytes:
        """Everything that can change an answer."""
        told = self.model_dump(exclude={"max_images"})
        return json.dumps(told, sort_keys=True).encode()

    @property
    def most_bytes(self) -> int:
        """Bytes of a request at most: base64 takes 4/3, and may hold escapes."""
        return self.max_images * 6 * math.prod(self.shape) + _AROUND


class RefusedError(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Question(NamedTuple):
    """A request that is answered: images, (n, C, H, W), in [0, 1], and the client's name."""

    images: Tensor
    client: str


def written_question(images: Tensor) -> bytes:
    """Write images, (n, C, H, W) float32, as the body of a request."""
    raw = np.ascontiguousarray(images.detach().cpu().numpy(), dtype="<f4").tobytes()
    body = {"images": base64.b64encode(raw).decode("ascii"), "shape": list(images.shape)}
    return json.dumps(body).encode()


def read_question(body: bytes, about: Description) -> Question:
    """Read the body of a request.

    Raises:
        RefusedError: If it is not of the contract.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is not JSON") from None
    if not isinstance(content, dict):
        raise RefusedError(422, "the body is not a JSON object")
    shape = _checked_shape(content.get("shape"), about)
    client = content.get("client") or ""
    if not isinstance(client, str) or len(client) > LONGEST or client.startswith("@"):
        raise RefusedError(
            422, f"client is not text of at most {LONGEST} characters that begins with no @"
        )
    return Question(_decoded(content.get("images"), shape), client)


def _checked_shape(shape: object, about: Description) -> tuple[int, ...]:
    wanted = "x".join(str(side) for side in about.shape)
    whole = isinstance(shape, list) and all(type(side) is int for side in shape)
    if not isinstance(shape, list) or not whole or tuple(shape[1:]) != about.shape:
        raise RefusedError(422, f"shape is not [n, C, H, W] of images of {wanted}")
    if not 1 <= shape[0] <= about.max_images:
        raise RefusedError(422, f"{shape[0]} images; allowed: 1 to {about.max_images}")
    return tuple(shape)


def _decoded(text: object, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(text, str):
        raise RefusedError(422, "images is not text")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(400, "images is not base64") from None
    if len(raw) != 4 * math.prod(shape):
        raise RefusedError(400, f"images holds {len(raw)} bytes, shape {4 * math.prod(shape)}")
    images = np.frombuffer(raw, dtype="<f4").astype(np.float32).reshape(shape)
    if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise RefusedError(422, "a pixel is NaN or outside [0, 1]")
    return torch.from_numpy(images)


def written_answer(logits: Tensor, scores: Scores, answered: int) -> dict[str, Any]:
    """Write logits, (n, K), as the body of an answer: labels, and what scores show of them."""
    return {
        "labels": logits.argmax(1).tolist(),
        "scores": written_scores(logits, scores),
        "answered": answered,
    }


def read_answer(content: object, count: int, about: Description) -> Tensor:
    """Read the body of an answer to `count` images; logits, (count, K), that say the same.

    Raises:
        ValueError: If it is not of the contract; the message says why.
    """
    if not isinstance(content, Mapping):
        raise ValueError("it is not a JSON object")
    labels, classes = content.get("labels"), about.num_classes
    if not isinstance(labels, list) or len(labels) != count:
        raise ValueError(f"it has not one label for each of {count} images")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise ValueError(f"a label is no class from 0 to {classes - 1}")
    return read_scores(content.get("scores"), torch.tensor(labels), classes, about.scores)
