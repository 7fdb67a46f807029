"""Asks an endpoint: one connection that is kept, retries with patience, answers checked."""

from __future__ import annotations

import json
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.endpoints import Endpoint
from benchmark.errors import SpecError, VictimError
from benchmark.extras import load_extra
from benchmark.serving.contract import Description, read_answer, written_question
from benchmark.serving.pace import Pace
from benchmark.spending import Bill, charge

_AGAIN = (429, 503)
_BACKOFF, _LONGEST = 0.25, 60  # seconds before the second try, doubled for each; at most
_OK = 200
_SHOWN = 200  # characters of an endpoint's own words that a message quotes


class Line:
    """Talks to one endpoint.

    Attributes:
        about: What the endpoint says of itself.

    Raises:
        SpecError: If the packages are not installed, the token is missing, or it is no endpoint.
        VictimError: If it does not answer.
    """

    def __init__(self, endpoint: Endpoint, pace: Pace | None) -> None:
        self._library = load_extra("urllib3", "http", "model 'http'")
        self._endpoint, self._pace = endpoint, pace
        checks = "CERT_REQUIRED" if endpoint.check_certificate else "CERT_NONE"
        self._pool = self._library.PoolManager(
            headers={**endpoint.headers(), "Content-Type": "application/json"},
            timeout=endpoint.timeout,
            cert_reqs=checks,
        )
        self._name = ""  # until it has told it
        self.about = self._described()
        self._name = self.about.name

    def close(self) -> None:
        """Close the connection."""
        self._pool.clear()

    def ask(self, images: Tensor) -> Tensor:
        """Ask about images, (n, C, H, W), n at most what the endpoint takes; logits, (n, K).

        Raises:
            VictimError: If there is no answer, or none of the contract.
        """
        if self._pace:
            self._pace.wait(len(images))
        content = self._request("POST", "/answer", written_question(images))
        price = len(images) * self._endpoint.price
        charge({self._name: Bill(images=len(images), price=price)})
        try:
            return read_answer(content, len(images), self.about)
        except ValueError as error:
            raise VictimError(f"{self._endpoint} answers what it should not: {error}") from None

    def _described(self) -> Description:
        content = self._request("GET", "/")
        try:
            return Description.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise SpecError(
                f"{self._endpoint} does not describe itself as docs/endpoints.md says: "
                f"{place}: {first['msg']}"
            ) from None

    def _request(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Send a request until it is answered, and read the answer."""
        url, retries = self._endpoint.url + path, self._patience()
        try:
            found = self._pool.request(method, url, body=body, retries=retries)
        except self._library.exceptions.HTTPError as error:
            self._sent_again(self._endpoint.retries)
            raise VictimError(f"{self._endpoint} does not answer: {_reason(error)}") from None
        self._sent_again(len(found.retries.history))
        if found.status != _OK:
            raise VictimError(
                f"{self._endpoint} answers with status {found.status}: {_said(found.data)}"
            )
        try:
            return json.loads(found.data)
        except (ValueError, RecursionError):
            raise VictimError(f"{self._endpoint} answers what is no JSON") from None

    def _sent_again(self, times: int) -> None:
        if times and self._name:
            charge({self._name: Bill(retries=times)})

    def _patience(self) -> Any:
        return self._library.Retry(
            total=self._endpoint.retries,
            redirect=False,
            allowed_methods=None,  # asking again does no harm
            status_forcelist=_AGAIN,
            backoff_factor=_BACKOFF,
            backoff_max=_LONGEST,
            retry_after_max=_LONGEST,
            raise_on_status=False,
        )


class Caller(nn.Module):
    """A network that has an endpoint classify: [0, 1] images in, logits out.

    What the endpoint says of itself is its only buffer, and so its fingerprint.

    Args:
        line: Connection to the endpoint.
    """

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line
        told = torch.tensor(list(line.about.identity), dtype=torch.uint8)
        self.register_buffer("description", told)

    def __deepcopy__(self, memo: dict[int, Any]) -> Caller:
        """Return itself: there is nothing to change in it, and one connection will do."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, (n, C, H, W) in [0, 1]; logits, (n, K).

        Raises:
            VictimError: If an image is not in [0, 1], or the endpoint does not answer well.
        """
        if images.requires_grad:
            raise VictimError("an endpoint gives no gradients: use another defense")
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise VictimError(
                "an endpoint takes images in [0, 1] alone: let the defense clip what it sends"
            )
        about = self._line.about
        parts = [self._line.ask(part) for part in torch.split(images, about.max_images)]
        logits = torch.cat(parts) if parts else images.new_empty((0, about.num_classes))
        return logits.to(images)


def _reason(error: BaseException) -> str:
    """Why a request failed; not in the library's words, which hold the address."""
    names = [type(one).__name__ for one in (error, getattr(error, "reason", None)) if one]
    return ", ".join(names)


def _said(body: bytes) -> str:
    try:
        words = str(json.loads(body)["error"])
    except (ValueError, RecursionError, LookupError, TypeError):
        words = "no reason given"
    return " ".join(words.split())[:_SHOWN]
