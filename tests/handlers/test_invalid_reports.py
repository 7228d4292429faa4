"""Reports that are refused, and those at the bounds of what is accepted."""

from adapter_reports import Json, both, path, report, state
from conftest import Api
from helpers_contract import JSON, check, problem

BAD_REPORTS: list[tuple[Json, str]] = [
    ({"adapter": None}, "adapter"),
    ({"adapter": ""}, "adapter"),
    ({"adapter": " "}, "adapter"),
    ({"adapter": "a" * 129}, "adapter"),
    ({"adapter": "dns adapter"}, "adapter"),
    ({"adapter": "dns\n"}, "adapter"),
    ({"adapter": "-dns"}, "adapter"),
    ({"adapter": "é"}, "adapter"),
    ({"adapter": 5}, "adapter"),
    ({"adapter": "dns\0"}, "adapter"),
    ({"observed_generation": 0}, "observed_generation"),
    ({"observed_generation": -1}, "observed_generation"),
    ({"observed_generation": 2**31}, "observed_generation"),
    ({"observed_generation": 10**40}, "observed_generation"),
    ({"observed_generation": 1.5}, "observed_generation"),
    ({"observed_generation": "1"}, "observed_generation"),
    ({"observed_generation": True}, "observed_generation"),
    ({"observed_generation": None}, "observed_generation"),
    ({"conditions": []}, "conditions"),
    ({"conditions": None}, "conditions"),
    ({"conditions": {}}, "conditions"),
    ({"conditions": "True"}, "conditions"),
    ({"conditions": [{"type": f"T{n}", "status": "True"} for n in range(101)]}, "conditions"),
    ({"conditions": ["Ready"]}, "conditions[0]"),
    ({"conditions": [None]}, "conditions[0]"),
    ({"data": []}, "data"),
    ({"data": "x"}, "data"),
    ({"data": 1}, "data"),
    ({"data": {"a": {"b": ["x\0"]}}}, "data.a.b[0]"),
    ({"metadata": []}, "metadata"),
    ({"metadata": "x"}, "metadata"),
    ({"metadata": {"a": "\0"}}, "metadata.a"),
    ({"observed_time": ""}, "observed_time"),
    ({"observed_time": "yesterday"}, "observed_time"),
    ({"observed_time": "2025-11-17"}, "observed_time"),
    ({"observed_time": "2025-11-17T15:04:05"}, "observed_time"),
    ({"observed_time": "2025-11-17T15:04Z"}, "observed_time"),
    ({"observed_time": "2025-02-30T15:04:05Z"}, "observed_time"),
    ({"observed_time": "2025-13-01T15:04:05Z"}, "observed_time"),
    ({"observed_time": "2025-11-17T25:04:05Z"}, "observed_time"),
    ({"observed_time": "2025-11-17T15:04:05+99:00"}, "observed_time"),
    ({"observed_time": "20251117T150405Z"}, "observed_time"),
    ({"observed_time": "2025-11-17T15:04:05Z\n"}, "observed_time"),
    ({"observed_time": "٢٠٢٥-11-17T15:04:05Z"}, "observed_time"),
    ({"observed_time": 1763391845}, "observed_time"),
]
BAD_CONDITIONS: list[tuple[Json, str]] = [
    ({"status": "true"}, "status"),
    ({"status": "Maybe"}, "status"),
    ({"status": ""}, "status"),
    ({"status": True}, "status"),
    ({"status": None}, "status"),
    ({"type": ""}, "type"),
    ({"type": None}, "type"),
    ({"type": 5}, "type"),
    ({"type": "T" * 317}, "type"),
    ({"type": "T\0"}, "type"),
    ({"reason": 5}, "reason"),
    ({"reason": "r" * 1025}, "reason"),
    ({"reason": "\0"}, "reason"),
    ({"message": []}, "message"),
    ({"message": "m" * 32769}, "message"),
    ({"message": "a\0b"}, "message"),
    ({"adapter": 5}, "adapter"),
    ({"observed_generation": "1"}, "observed_generation"),
    ({"created_at": "yesterday"}, "created_at"),
    ({"updated_at": 5}, "updated_at"),
    ({"last_transition_time": "2025-11-17 25:00"}, "last_transition_time"),
]


def test_invalid_reports_are_refused_with_the_path_of_the_field(api: Api) -> None:
    for resource in both(api):
        check(api.put(path(resource), json=report()), 201)
        before = state(api, resource)
        for change, field in BAD_REPORTS:
            body = problem(api.put(path(resource), json={**report(), **change}), 400)
            assert {error["field"] for error in body["errors"]} == {field}, change
        for change, member in BAD_CONDITIONS:
            conditions: list[Json] = [{"type": f"T{n}", "status": "True"} for n in range(3)]
            conditions[2] |= change
            body = problem(api.post(path(resource), json=report(conditions=conditions)), 400)
            assert {error["field"] for error in body["errors"]} == {f"conditions[2].{member}"}, change
        assert state(api, resource) == before


def test_missing_members_are_named_by_their_paths(api: Api) -> None:
    for resource in both(api):
        problem(api.put(path(resource), json={}), 400, "adapter", "observed_generation", "conditions")
        for missing in ("adapter", "observed_generation", "conditions"):
            body = {key: value for key, value in report().items() if key != missing}
            problem(api.post(path(resource), json=body), 400, missing)
        incomplete = report(
            conditions=[{"type": "A", "status": "True"}, {"type": "B"}, {"status": "True"}, {}]
        )
        problem(
            api.put(path(resource), json=incomplete),
            400,
            "conditions[1].status",
            "conditions[2].type",
            "conditions[3].status",
            "conditions[3].type",
        )
        assert check(api.get(path(resource)))["total"] == 0


def test_several_faults_of_a_report_are_reported_together(api: Api) -> None:
    bad = report(
        "",
        observed_generation=0,
        observed_time="now",
        conditions=[{"type": "", "status": "Yes"}, {"type": "B", "status": "True", "message": 5}],
        data=[],
    )
    problem(
        api.put(path(api.cluster()), json=bad),
        400,
        "adapter",
        "observed_generation",
        "observed_time",
        "conditions[0].type",
        "conditions[0].status",
        "conditions[1].message",
        "data",
    )


def test_two_conditions_of_one_type_are_refused(api: Api) -> None:
    for resource in both(api):
        twice = [{"type": one, "status": "True"} for one in ("Ready", "Health", "Ready")]
        body = problem(api.put(path(resource), json=report(conditions=twice)), 400)
        (error,) = body["errors"]
        assert error["field"] in ("conditions[2].type", "conditions[2]")
        # Types are case-sensitive.
        check(
            api.put(
                path(resource),
                json=report(conditions=[{"type": one, "status": "True"} for one in ("Ready", "ready")]),
            ),
            201,
        )


def test_faults_that_the_contract_cannot_express_are_reported_together_too(api: Api) -> None:
    twice = [{"type": one, "status": "True"} for one in ("Ready", "Health", "Ready")]
    for resource in both(api):
        for time, said in (
            ("2999-01-01T00:00:00Z", "5 minutes"),
            ("2016-12-31T23:59:60Z", "leap second"),
            ("0000-01-01T00:00:00Z", "between the years"),
        ):
            bad = report(conditions=twice, observed_time=time)
            found = problem(
                api.put(path(resource), json=bad), 400, "observed_time", "conditions[2].type"
            )["errors"]
            (message,) = (one["message"] for one in found if one["field"] == "observed_time")
            assert said in message
        assert check(api.get(path(resource)))["total"] == 0


def test_lone_surrogates_in_a_report_are_refused(api: Api) -> None:
    cluster = api.cluster()
    for members, field in (
        (
            '"conditions": [{"type": "A", "status": "True", "message": "\\ud800"}]',
            "conditions[0].message",
        ),
        ('"conditions": [{"type": "A\\udfff", "status": "True"}]', "conditions[0].type"),
        ('"conditions": [{"type": "A", "status": "True"}], "data": {"a": "\\ud800"}', "data.a"),
    ):
        body = f'{{"adapter": "dns", "observed_generation": 1, {members}}}'
        problem(api.put(path(cluster), data=body, headers={"Content-Type": JSON}), 400, field)
    assert check(api.get(path(cluster)))["total"] == 0


def test_a_report_over_the_limit_is_refused_and_one_at_its_bounds_is_accepted(api: Api) -> None:
    for resource in both(api):
        problem(api.put(path(resource), json=report(data={"a": "x" * 1024 * 1024})), 413)
        largest = report(
            "a" * 128,
            conditions=[
                {
                    "type": f"T{n:03}" + "x" * 312,
                    "status": "False",
                    "reason": "r" * 1024,
                    "message": "m" * 5000,
                }
                for n in range(99)
            ]
            + [{"type": "Long", "status": "False", "message": "m" * 32768}],
        )
        stored = check(api.put(path(resource), json=largest), 201)
        assert len(stored["conditions"]) == 100
        assert len(stored["conditions"][99]["message"]) == 32768
        assert api.read(resource)["status"]["adapters"][0]["adapter"] == "a" * 128


def test_odd_times_get_the_responses_that_the_contract_describes(api: Api) -> None:
    cluster = api.cluster()
    for odd in (
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "1582-10-10T00:00:00Z",
        "2016-12-31T23:59:60Z",
        "2025-11-17T24:00:00Z",
        "2025-11-17t15:04:05z",
        "2025-11-17 15:04:05Z",
        "2025-11-17T15:04:05.123456789Z",
        "2025-11-17T15:04:05.Z",
        "2025-11-17T15:04:05-00:00",
        "-2025-11-17T15:04:05Z",
        "+12025-11-17T15:04:05Z",
        "infinity",
        "epoch",
        "now",
        "today",
    ):
        for members in (
            {"observed_time": odd},
            {"conditions": [{"type": "A", "status": "True", "created_at": odd}]},
        ):
            response = api.put(path(cluster), json=report(**members))
            if response.status_code == 400:
                problem(response, 400)
            elif response.status_code == 204:
                check(response, 204)
            else:
                check(response, 201)
        check(api.get(path(cluster)))
        check(api.get(f"/{cluster['href']}"))
