"""Makes the contract and its schemas only once, since hundreds of services use the same."""

import pickle
from collections.abc import Callable
from typing import Any

from hyperfleet import app
from hyperfleet.contract import schema
from hyperfleet.http.routing import Shipped


class Once:
    """Remembers what ``make`` returns, by what ``of`` returns for the same arguments."""

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
    """Lets the applications of this process share these.

    :param contract: makes what Connexion takes from the contract
    """
    app.Shipped = Once(contract, lambda document: document)
    schema.compile_schema = Once(
        schema.compile_schema, lambda schema, named=None, *, old=True: [_brief(schema), named, old]
    )


def _brief(schema: Any) -> Any:
    """Returns a schema with its contract's components replaced by their id: writing them takes longest.

    They belong to a contract that is remembered, so nothing else can get the same id.
    """
    if isinstance(schema, dict) and "components" in schema:
        return {**schema, "components": id(schema["components"])}
    return schema
