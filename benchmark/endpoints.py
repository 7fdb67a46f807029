"""Remote classifiers as the config file describes them: `[endpoints.NAME]`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from benchmark.errors import SpecError, suggestion
from benchmark.params import reason


class Endpoint(BaseModel):
    """How a remote classifier is reached; none of it is part of a result's identity.

    Attributes:
        name: Name in the config file; empty for one that is named by its URL.
        url: Address under which `/` and `/answer` are found, http or https.
        token_variable: Environment variable whose content is sent as bearer token, or None.
        rate: Images a second at most, all processes of a machine together; None for no limit.
        price: Price of one image, in any currency.
        timeout: Seconds to wait for an answer.
        retries: Times that a request is sent again before it has failed.
        check_certificate: Refuse a server whose certificate cannot be checked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = ""
    url: str
    token_variable: Annotated[str, Field(min_length=1)] | None = None
    rate: Annotated[float, Field(gt=0)] | None = None
    price: Annotated[float, Field(ge=0)] = 0.0
    timeout: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    check_certificate: bool = True

    @field_validator("url")
    @classmethod
    def _plain(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be of the form https://host/path")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must have no user, query or fragment: tokens go by token_variable")
        return value.rstrip("/")

    def __str__(self) -> str:
        """Write it as messages name it."""
        return f"endpoint '{self.name or self.url}'"

    def headers(self) -> dict[str, str]:
        """Make the headers of every request.

        Raises:
            SpecError: If the token is not where it should be.
        """
        if self.token_variable is None:
            return {}
        token = os.environ.get(self.token_variable, "")
        if not token:
            raise SpecError(f"{self}: the environment variable {self.token_variable} has no token")
        return {"Authorization": f"Bearer {token}"}


def read_endpoints(tables: object, who: str) -> tuple[Endpoint, ...]:
    """Read the tables `[endpoints.NAME]`.

    Args:
        tables: What the config file says under `endpoints`.
        who: How messages name the file.

    Raises:
        SpecError: For an unknown key or a value that is not allowed.
    """
    if not isinstance(tables, Mapping):
        raise SpecError(f"{who}: endpoints must be tables of the form [endpoints.NAME]")
    return tuple(
        _endpoint(name, table, f"{who}: [endpoints.{name}]") for name, table in tables.items()
    )


def find_endpoint(text: str, known: tuple[Endpoint, ...]) -> Endpoint:
    """Find an endpoint by its name in the config file, or make one of a URL.

    Raises:
        SpecError: If there is none of that name, or the URL is not allowed.
    """
    if "://" in text:
        return _endpoint("", {"url": text}, "model 'http'")
    for endpoint in known:
        if endpoint.name == text:
            return endpoint
    hint = suggestion(text, [endpoint.name for endpoint in known])
    raise SpecError(f"no endpoint '{text}' in the config file: add [endpoints.{text}]. {hint}")


def _endpoint(name: str, table: object, who: str) -> Endpoint:
    given: dict[str, Any] = dict(table) if isinstance(table, Mapping) else {}
    allowed = [key for key in Endpoint.model_fields if key != "name"]
    for key in given:
        if key not in allowed:
            raise SpecError(f"{who}: unknown key '{key}'. {suggestion(key, allowed)}")
    try:
        return Endpoint(name=name, **given)
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(f"{who}: {first['loc'][0]}: {reason(first)}") from None
