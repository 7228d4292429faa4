"""What is made of the contract and its schemas, once for each: hundreds of services have the same."""

import pickle
from collections.abc import Callable
from typing import Any

from hyperfleet import app
from hyperfleet.contract import schema
from hyperfleet.http.routing import Shipped


class Once:
    """What ``make`` makes, of which ``of`` says what decides on it."""

    def __init__(self, make: Callable[..., Any], of: Callable[..., Any]) -> None:
        self.make = make
        self.of = of
        self.known: dict[bytes, Any] = {}

    def __call__(self, *given: Any, **named: Any) -> Any:
        key = pickle.dumps(self.of(*given, **named))
        if key not in self.known:
            self.known[key] = self.make(*given, **named)
        return self.known[key]


def remember(contract: Callable[[dict[str, Any]], Shipped] = Shipped) -> None:
    """Lets applications of this process share it.

    :param contract: makes of the contract what Connexion takes
    """
    app.Shipped = Once(contract, lambda document: document)
    schema.compile_schema = Once(
        schema.compile_schema, lambda schema, named=None, *, old=True: [schema, named, old]
    )
