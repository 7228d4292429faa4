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
        schema.compile_schema, lambda schema, named=None, *, old=True: [_brief(schema), named, old]
    )


def _brief(schema: Any) -> Any:
    """A schema with its contract's components by where they are: to write them takes the longest.

    They are of a contract that is remembered, so that nothing else can come to be there.
    """
    if isinstance(schema, dict) and "components" in schema:
        return {**schema, "components": id(schema["components"])}
    return schema
