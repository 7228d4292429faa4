"""What is made of the contract and its schemas, once for each: hundreds of services have the same."""

import pickle
from collections.abc import Callable
from typing import Any

from hyperfleet import app
from hyperfleet.contract import schema
from hyperfleet.http.routing import Shipped


def once(make: Callable[..., Any], of: Callable[..., Any]) -> Callable[..., Any]:
    """What ``make`` makes, of which ``of`` says what decides on it."""
    known: dict[bytes, Any] = {}

    def get(*given: Any, **named: Any) -> Any:
        key = pickle.dumps(of(*given, **named))
        if key not in known:
            known[key] = make(*given, **named)
        return known[key]

    return get


def remember(contract: Callable[[dict[str, Any]], Shipped] = Shipped) -> None:
    """Lets applications of this process share it.

    :param contract: makes of the contract what Connexion takes
    """
    app.Shipped = once(contract, lambda document: document)
    schema.compile_schema = once(
        schema.compile_schema, lambda schema, named=None, *, old=True: [schema, named, old]
    )
