"""How Connexion finds the function of an operation."""

import re
from typing import Any

from connexion import utils
from connexion.resolver import Resolver


def snake_case(name: str) -> str:
    """``getClusterById`` as ``get_cluster_by_id``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class HandlerResolver(Resolver):
    """Finds the function of an operation: its id in snake case, in the module that its path names."""

    def resolve_function_from_operation_id(self, operation_id: str) -> Any:
        """The function; raises ResolverError for an operation that nobody wrote."""
        module, _, name = operation_id.rpartition(".")
        return utils.get_function_from_name(f"{module}.{snake_case(name)}")
