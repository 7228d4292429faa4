"""Where the contract and the migrations lie: in the package once installed, beside it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """The path of a folder or file that travels with the package, such as ``openapi/openapi.yaml``.

    A wheel holds these folders inside the package; an editable installation finds them one level up.
    """
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.parent / name
