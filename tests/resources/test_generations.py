"""Three generations of clients: the requests that each sends, and the fields that it reads."""

from pathlib import Path

import pytest
from conftest import Api
from exchange import play

EXCHANGES = sorted((Path(__file__).parents[1] / "exchanges").glob("*.yaml"))


@pytest.mark.parametrize("path", EXCHANGES, ids=[path.stem for path in EXCHANGES])
def test_a_client_of_this_generation_finds_every_field_that_it_reads(api: Api, path: Path) -> None:
    play(api, path)
