"""``hyperfleet token``: an issuer of tokens for development that needs no network."""

import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwk, jwt

ALGORITHM = "RS256"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Lifetime(click.ParamType[Any]):
    """A duration such as ``90s``, ``30m``, ``12h`` or ``7d``, in seconds."""

    name = "lifetime"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns the seconds; negative ones make a token that has already expired."""
        match = re.fullmatch(r"(-?\d{1,9})([smhd])", value)
        if match is None:
            self.fail(f"{value!r} is not a duration such as 30m, 12h or 7d.", param, ctx)
        return int(match[1]) * UNITS[match[2]]


@click.command("token")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: Path(click.get_app_dir("hyperfleet")),
    show_default="hyperfleet in the user's configuration",
    help="Folder of the key pair, the key set and the token.",
)
@click.option("--email", default="developer@hyperfleet.local", show_default=True, help="Email it names.")
@click.option("--username", default="developer", show_default=True, help="Account it names.")
@click.option("--issuer", default="https://hyperfleet.local", show_default=True, help="Its iss claim.")
@click.option("--audience", help="Its aud claim.")
@click.option(
    "--lifetime", type=Lifetime(), default="12h", show_default=True, help="How long the token is valid."
)
@click.option(
    "--claim", "claims", multiple=True, metavar="NAME=VALUE", help="Another claim, as JSON or text."
)
def token(
    folder: Path, lifetime: int, audience: str | None, claims: tuple[str, ...], **who: str
) -> None:
    """Make a token for development, and print it.

    The first call makes a key pair; `hyperfleet serve --jwk-cert-file DIR/jwks.json` then accepts the
    tokens, without a network. Never do that in production: anyone with the folder can pose as anybody.
    """
    try:
        key = _key(folder)
        public = key.public_key()
        kid = _key_id(public)
        pem = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        document = {"keys": [{**jwk.construct(pem, ALGORITHM).to_dict(), "kid": kid, "use": "sig"}]}
        _write(folder / "jwks.json", json.dumps(document, indent=2) + "\n")
        text = jwt.encode(
            _claims(lifetime, audience, claims, who), _pem(key).decode(), ALGORITHM, {"kid": kid}
        )
        _write(folder / "token", text + "\n")
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{folder}: {error}") from None
    click.echo(text)
    click.echo(f"hyperfleet serve --jwk-cert-url= --jwk-cert-file {folder / 'jwks.json'}", err=True)


def _claims(
    lifetime: int, audience: str | None, claims: tuple[str, ...], who: dict[str, str]
) -> dict[str, Any]:
    now = int(time.time())
    made: dict[str, Any] = {
        "iss": who["issuer"],
        "sub": who["username"],
        "typ": "Bearer",
        "iat": now,
        "exp": now + lifetime,
        "email": who["email"],
        "username": who["username"],
        "preferred_username": who["username"],
    }
    if audience:
        made["aud"] = audience
    for claim in claims:
        name, equals, value = claim.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--claim: {claim!r} is not like NAME=VALUE.")
        try:
            made[name] = json.loads(value)
        except ValueError:
            made[name] = value
    return made


def _key(folder: Path) -> rsa.RSAPrivateKey:
    """Returns the key in the folder; makes one if there is none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "private.pem"
    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError("private.pem holds no RSA key")
        return key
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write(path, _pem(key).decode())
    return key


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _key_id(key: rsa.RSAPublicKey) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    """Writes a file atomically, and for the user alone: mkstemp makes files with mode 0600."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)
