"""The running service checks its own responses against the contract."""

import time
from collections.abc import Callable

import psycopg
import pytest
import requests
from conftest import Api
from helpers_contract import problem
from process import Serving

from hyperfleet.contract import document, responses
from hyperfleet.settings.catalogue import Settings

# The service builds its documents in SQL, so this is how one could break the contract.
BREAK = "UPDATE clusters SET status = jsonb_set(status, '{phase}', '\"Odd\"')"


def broken(api: Api, sql: psycopg.Connection) -> str:
    path = f"/clusters/{api.cluster()['id']}"
    sql.execute(BREAK)
    return path


def test_all_turns_a_response_that_breaks_the_contract_into_a_500_and_logs_it(
    service: Callable[..., Api], sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    api = service(validate_responses="all")
    path = broken(api, sql)
    for odd in (path, "/clusters", "/clusters?fields=status", path + "?fields=status.phase"):
        problem(api.get(odd), 500)
    assert "answer 200 of getClusterById breaks the contract: status.phase must be one of" in caplog.text
    assert "answer 200 of getClusters breaks the contract: items[0].status.phase" in caplog.text
    # Members that are not shown are not checked.
    assert api.get(path + "?fields=name").status_code == 200
    assert api.get("/clusters?fields=name,status.conditions.type").status_code == 200


@pytest.mark.slow
def test_sample_sends_a_response_that_breaks_the_contract_and_logs_and_counts_it(
    database: str, sql: psycopg.Connection
) -> None:
    with Serving("--no-auth", "--database-url", database, "--validate-responses=sample") as server:
        api = Api(server.url)
        path = broken(api, sql)
        end = time.monotonic() + 20
        while "breaks the contract: status.phase" not in server.output:
            # One response is checked at a time, so this one may be skipped for another operation's.
            assert api.get(path).status_code == 200
            assert time.monotonic() < end
            time.sleep(0.3)
        metrics = requests.get(server.metrics, timeout=5).text
        assert 'hyperfleet_contract_breaches_total{operation="getClusterById"}' in metrics


def test_a_wrong_media_type_invalid_json_and_an_unexpected_body_are_named() -> None:
    contract = responses.Contract(document.load())

    def fault(operation: str, status: int, media_type: str, body: bytes) -> tuple[str, str]:
        answer = responses.Answer(operation, status, media_type, body, False)
        [found] = contract.faults(answer)
        return found["field"], found["message"]

    html, json = "text/html", "application/json"
    wrong = fault("getClusterById", 200, html, b"{}")
    assert wrong == ("Content-Type", "text/html is not a media type of this answer")
    assert fault("getClusterById", 200, "", b"{}")[1] == "none is not a media type of this answer"
    assert fault("getClusterById", 200, json, b"{") == ("body", "is not JSON")
    assert fault("getClusterById", 404, html, b"NaN") == ("body", "is not JSON")
    # A problem has either media type, also with a status that is not listed.
    for status in (400, 431, 599):
        assert fault("getClusters", status, html, b"NaN") == ("body", "is not JSON")
    assert fault("forceDeleteCluster", 204, json, b"{}") == ("body", "there must be none")


def test_off_checks_nothing(
    service: Callable[..., Api], sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    api = service(validate_responses="off")
    assert api.get(broken(api, sql)).status_code == 200
    assert "breaks the contract" not in caplog.text


def test_sample_checks_one_response_in_100_and_one_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(responses.time, "monotonic", lambda: now[0])
    checked = responses.Checked(None, None, "sample", None)  # type: ignore[arg-type]
    assert [checked._due("a") for _ in range(201)] == [number % 100 == 0 for number in range(201)]
    assert checked._due("b")
    now[0] += 1
    assert [checked._due("a") for _ in range(3)] == [True, False, False]
    # One is checked at a time, so that they never pile up.
    now[0] += 1
    checked.looking = True
    assert not checked._due("a")


def test_the_default_is_all_with_the_embedded_database_and_sample_with_any_other() -> None:
    assert Settings().responses_checked == "all"
    assert Settings(database_url="host=h dbname=x").responses_checked == "sample"
    assert Settings(db_host="h").responses_checked == "sample"
    assert Settings(validate_responses="off").responses_checked == "off"
