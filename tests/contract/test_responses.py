"""Answers are held against the contract while the service runs."""

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

# The service makes its documents in SQL: this is how one could come to break the contract.
BREAK = "UPDATE clusters SET status = jsonb_set(status, '{phase}', '\"Odd\"')"


def broken(api: Api, sql: psycopg.Connection) -> str:
    path = f"/clusters/{api.cluster()['id']}"
    sql.execute(BREAK)
    return path


def test_under_all_an_answer_that_breaks_the_contract_is_an_error_and_logged(
    service: Callable[..., Api], sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    api = service(validate_responses="all")
    path = broken(api, sql)
    for odd in (path, "/clusters", "/clusters?fields=status", path + "?fields=status.phase"):
        problem(api.get(odd), 500)
    assert "answer 200 of getClusterById breaks the contract: status.phase must be one of" in caplog.text
    assert "answer 200 of getClusters breaks the contract: items[0].status.phase" in caplog.text
    # What is not shown is not looked at.
    assert api.get(path + "?fields=name").status_code == 200
    assert api.get("/clusters?fields=name,status.conditions.type").status_code == 200


@pytest.mark.slow
def test_under_sample_it_is_answered_logged_and_counted(database: str, sql: psycopg.Connection) -> None:
    with Serving("--no-auth", "--database-url", database, "--validate-responses=sample") as server:
        api = Api(server.url)
        path = broken(api, sql)
        end = time.monotonic() + 20
        while "breaks the contract: status.phase" not in server.output:
            # One answer is looked at at a time: this one may be passed over for another operation's.
            assert api.get(path).status_code == 200
            assert time.monotonic() < end
            time.sleep(0.3)
        metrics = requests.get(server.metrics, timeout=5).text
        assert 'hyperfleet_contract_breaches_total{operation="getClusterById"}' in metrics


def test_what_an_answer_has_that_none_may_have_is_named() -> None:
    contract = responses.Contract(document.load())

    def said(operation: str, status: int, media_type: str, body: bytes) -> tuple[str, str]:
        answer = responses.Answer(operation, status, media_type, body, False)
        [found] = contract.faults(answer)
        return found["field"], found["message"]

    html, json = "text/html", "application/json"
    wrong = said("getClusterById", 200, html, b"{}")
    assert wrong == ("Content-Type", "text/html is not a media type of this answer")
    assert said("getClusterById", 200, "", b"{}")[1] == "none is not a media type of this answer"
    assert said("getClusterById", 200, json, b"{") == ("body", "is not JSON")
    assert said("getClusterById", 404, html, b"NaN") == ("body", "is not JSON")
    assert said("forceDeleteCluster", 204, json, b"{}") == ("body", "there must be none")


def test_under_off_nothing_is_looked_at(
    service: Callable[..., Api], sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    api = service(validate_responses="off")
    assert api.get(broken(api, sql)).status_code == 200
    assert "breaks the contract" not in caplog.text


def test_one_in_a_hundred_is_looked_at_and_one_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(responses.time, "monotonic", lambda: now[0])
    checked = responses.Checked(None, None, "sample", None)  # type: ignore[arg-type]
    assert [checked._due("a") for _ in range(201)] == [number % 100 == 0 for number in range(201)]
    assert checked._due("b")
    now[0] += 1
    assert [checked._due("a") for _ in range(3)] == [True, False, False]
    # One at a time, so that they never pile up.
    now[0] += 1
    checked.looking = True
    assert not checked._due("a")


def test_without_the_setting_the_embedded_database_means_all_and_any_other_sample() -> None:
    assert Settings().responses_checked == "all"
    assert Settings(database_url="host=h dbname=x").responses_checked == "sample"
    assert Settings(db_host="h").responses_checked == "sample"
    assert Settings(validate_responses="off").responses_checked == "off"
