"""Where the contract and the migrations are: in the installed package, or next to it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """Returns the path of a shipped folder or file, such as ``openapi/openapi.yaml``.

    A wheel has these folders inside the package; an editable installation has them one level up.
    """
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.parent / name
