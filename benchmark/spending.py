"""What was asked of endpoints: images answered, requests sent again, and the price of both."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Bill:
    """What was asked of one endpoint.

    Attributes:
        images: Images that were answered.
        retries: Requests that were sent again; no queries.
        price: Price of the images.
    """

    images: int = 0
    retries: int = 0
    price: float = 0.0

    def __add__(self, other: Bill) -> Bill:
        """Sum two bills."""
        images, retries = self.images + other.images, self.retries + other.retries
        return Bill(images, retries, self.price + other.price)


Bills = Mapping[str, Bill]  # by the names of victims


class _Ledgers(threading.local):
    """The ledgers that are open in this thread, from the outermost to the innermost."""

    def __init__(self) -> None:
        self.open: list[dict[str, Bill]] = []


_mine = _Ledgers()


@contextmanager
def counted() -> Iterator[Bills]:
    """Collect what this thread asks of endpoints while the context lasts.

    A worker's ledger goes to the main process with its report, so a ledger around it is not
    charged, which may be in the same thread.
    """
    ledger: dict[str, Bill] = {}
    _mine.open.append(ledger)
    try:
        yield ledger
    finally:
        _mine.open.pop()  # the innermost: contexts are nested


def charge(bills: Bills) -> None:
    """Note what was asked of endpoints, in the innermost ledger of this thread."""
    for ledger in _mine.open[-1:]:
        for name, bill in bills.items():
            ledger[name] = ledger.get(name, Bill()) + bill


def bill_lines(bills: Bills) -> list[str]:
    """Say what each endpoint was asked, a line each."""
    found = []
    for name, bill in sorted(bills.items()):
        again = "1 request" if bill.retries == 1 else f"{bill.retries:,} requests"
        price = f"; price {bill.price:,.2f}" if bill.price else ""
        found.append(f"endpoint {name}: {bill.images:,} images answered, {again} sent again{price}")
    return found
