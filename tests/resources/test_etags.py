"""Entity tags save clients from loading what has not changed and overwriting what they have not seen."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests
from alike import (
    ADAPTER,
    BOTH_KINDS,
    MERGE,
    at,
    collection,
    create,
    delete,
    finalize,
    gone,
    patch,
    place,
    read,
    refused,
)
from conftest import Api
from helpers_contract import JSON, NO_ID, check, problem, raw

pytestmark = pytest.mark.slow

Json = dict[str, Any]

ALLOWED = "https://console.redhat.com"


def get(api: Api, resource: Json, tags: str) -> requests.Response:
    return api.get(at(resource), headers={"If-None-Match": tags})


def change(api: Api, resource: Json, tags: str, value: Any = 1) -> requests.Response:
    return patch(api, resource, {"spec": {"changed": value}}, **{"If-Match": tags})


def not_modified(response: requests.Response, tag: str) -> None:
    assert check(response, 304) is None
    assert response.headers["ETag"] == tag


def weak(tag: str) -> str:
    return f"W/{tag}"


# The tag


@BOTH_KINDS
def test_every_response_with_a_resource_has_its_strong_tag(waiting: Api, kind: str) -> None:
    api = waiting
    created = api.post(place(api, kind), json={"name": "one", "spec": {}})
    resource = check(created, 201)
    tags = [created.headers["ETag"]]
    for response in (api.get(at(resource)), api.head(at(resource))):
        assert response.status_code == 200
        assert response.headers["ETag"] == tags[-1]
    for write in (lambda: patch(api, resource, {"spec": {"x": 1}}), lambda: api.delete(at(resource))):
        changed = write()
        assert changed.ok
        tags.append(changed.headers["ETag"])
        assert read(api, resource) == (tags[-1], changed.json())
    for tag in tags:
        assert tag.startswith('"')
        assert tag.endswith('"')
        assert len(tag) > 2
    assert len(set(tags)) == 3


@BOTH_KINDS
def test_every_write_changes_the_tag_and_nothing_else_does(api: Api, kind: str) -> None:
    resource = create(api, kind)
    other = create(api, kind, "other")
    seen = [read(api, resource)[0]]
    for write in (
        lambda: patch(api, resource, {"spec": {"x": 1}}),
        lambda: patch(api, resource, {"labels": {"x": "1"}}, MERGE),
        lambda: api.report(resource, "dns"),
        # A later report, with later times.
        lambda: api.report(resource, "dns", observed_generation=2),
        lambda: api.delete(at(resource)),
    ):
        assert write().ok
        seen.append(read(api, resource)[0])
    assert len(set(seen)) == len(seen)
    for idle in (
        lambda: api.get(at(resource)),
        lambda: api.get(at(resource, "/statuses")),
        lambda: api.delete(at(resource)),
        lambda: api.report(resource, "dns", observed_generation=99),
        lambda: patch(api, other, {"spec": {"y": 1}}),
        lambda: patch(api, resource, {"spec": {"z": 1}}),
    ):
        idle()
        assert read(api, resource)[0] == seen[-1]


def test_a_tag_is_valid_on_every_replica(service: Callable[..., Api]) -> None:
    first, second = service(), service()
    cluster = first.cluster()
    assert read(first, cluster) == read(second, cluster)
    tag = read(first, cluster)[0]
    not_modified(get(second, cluster, tag), tag)
    check(change(second, cluster, tag))
    refused(change(first, cluster, tag, 2), 412)


# If-None-Match


@BOTH_KINDS
def test_if_none_match_with_the_current_tag_gets_304(api: Api, kind: str) -> None:
    resource = create(api, kind)
    tag, now = read(api, resource)
    for tags in (tag, weak(tag), f'"other", {tag}', f'W/"other",{weak(tag)} , "third"', f"{tag},", "*"):
        not_modified(get(api, resource, tags), tag)
        head = api.head(at(resource), headers={"If-None-Match": tags})
        assert (head.status_code, head.headers["ETag"]) == (304, tag)
    for tags in (
        '"other"',
        'W/"other"',
        f'"{tag[1:-1]}0"',
        f'"x,{tag[1:-1]}"',
        f'"other", "{tag[1:-1]} "',
    ):
        response = get(api, resource, tags)
        assert (response.headers["ETag"], check(response)) == (tag, now)


@BOTH_KINDS
def test_if_none_match_with_an_old_tag_gets_the_current_version(api: Api, kind: str) -> None:
    resource = create(api, kind)
    old, _ = read(api, resource)
    changed = check(patch(api, resource, {"spec": {"x": 1}}))
    assert check(get(api, resource, old)) == changed
    tag, _ = read(api, resource)
    not_modified(get(api, resource, tag), tag)
    not_modified(get(api, resource, f"{old}, {tag}"), tag)
    # A report changes what pollers see.
    api.report(resource, "dns")
    response = get(api, resource, tag)
    assert check(response)["status"]["adapters"][0]["adapter"] == "dns"


def test_tags_may_come_in_several_header_lines(api: Api) -> None:
    cluster = api.cluster()
    tag, _ = read(api, cluster)
    head = f'GET {cluster["href"]} HTTP/1.1\r\nIf-None-Match: "other"\r\nIf-None-Match: {tag}'
    assert raw(api, head).status_code == 304
    body = b'{"spec":{"x":1}}'
    head = (
        f"PATCH {cluster['href']} HTTP/1.1\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n"
        f'If-Match: "other"\r\nIf-Match: {tag}'
    )
    assert raw(api, head, body).status_code == 200
    assert raw(api, head, body).status_code == 412


@BOTH_KINDS
def test_if_none_match_on_an_unknown_resource_gets_404(api: Api, kind: str) -> None:
    resource = create(api, kind)
    for tags in ("*", '"1"', read(api, resource)[0]):
        problem(api.get(f"{collection(resource)}/{NO_ID}", headers={"If-None-Match": tags}), 404)


# If-Match


@BOTH_KINDS
def test_if_match_with_the_current_tag_lets_a_patch_through(api: Api, kind: str) -> None:
    resource = create(api, kind)
    for value, form in enumerate(("{}", '"other", {}', '{} , "other"', '"a,b",{}', 'W/"1", {}', "*")):
        tag, before = read(api, resource)
        changed = check(change(api, resource, form.format(tag), value))
        assert changed["spec"] == {"changed": value}
        assert changed["generation"] == before["generation"] + 1


@BOTH_KINDS
def test_if_match_with_another_tag_refuses_patch_and_delete(api: Api, kind: str) -> None:
    resource = create(api, kind)
    old, _ = read(api, resource)
    check(patch(api, resource, {"spec": {"x": 1}}))
    before = read(api, resource)
    tag = before[0]
    inner = tag[1:-1]
    for tags in (
        old,
        '"other"',
        # A weak tag does not mean equality byte for byte.
        weak(tag),
        f"{weak(tag)}, {old}",
        f'"{inner}0"',
        f'"x,{inner},y"',
        f'"{inner} "',
        '""',
        '"*"',
    ):
        for media_type in (JSON, MERGE):
            response = patch(api, resource, {"spec": {"y": 1}}, media_type, **{"If-Match": tags})
            refused(response, 412)
            # The response includes the current tag, so the client need not ask for it.
            assert response.headers["ETag"] == tag
        response = api.delete(at(resource), headers={"If-Match": tags})
        refused(response, 412)
        assert response.headers["ETag"] == tag
        assert read(api, resource) == before


@BOTH_KINDS
def test_a_refusal_of_a_current_tag_made_weak_by_a_proxy_says_so(api: Api, kind: str) -> None:
    # If told that the resource had changed, the client would read it again and get the same tag.
    resource = create(api, kind)
    tag, _ = read(api, resource)
    for tags in (weak(tag), f'"other", {weak(tag)}'):
        error = refused(change(api, resource, tags), 412)
        assert "is weak" in error["detail"]
        assert "has not changed" in error["detail"]
    check(change(api, resource, tag))
    error = refused(change(api, resource, weak(tag)), 412)
    assert error["detail"] == "The resource has changed since the version in If-Match."


@BOTH_KINDS
def test_a_malformed_if_match_never_lets_a_change_through(api: Api, kind: str) -> None:
    resource = create(api, kind)
    before = read(api, resource)
    inner = before[0][1:-1]
    # The bare version without quotes is not here: it is no tag either, but means the right one.
    for tags in (
        f"'{inner}'",
        f'"{inner}',
        f'{inner}"',
        f'w/"{inner}"',
        "",
        ",",
        "* x",
        f'W/ "{inner}"',
    ):
        for response in (
            change(api, resource, tags),
            api.delete(at(resource), headers={"If-Match": tags}),
        ):
            assert response.status_code in (400, 412), (tags, response.text)
        assert read(api, resource) == before
        # It is harmless in a read, which only must not fail with a server error.
        assert get(api, resource, tags).status_code in (200, 304, 400)


@BOTH_KINDS
def test_if_match_is_checked_for_a_patch_that_changes_nothing(api: Api, kind: str) -> None:
    resource = create(api, kind)
    before = read(api, resource)
    refused(patch(api, resource, {}, **{"If-Match": '"other"'}), 412)
    response = patch(api, resource, {"spec": resource["spec"]}, **{"If-Match": before[0]})
    assert (response.headers["ETag"], check(response)) == before


@BOTH_KINDS
def test_a_report_outdates_the_tag_of_the_resource(api: Api, kind: str) -> None:
    resource = create(api, kind)
    tag, _ = read(api, resource)
    api.report(resource, "dns")
    refused(change(api, resource, tag), 412)
    refused(api.delete(at(resource), headers={"If-Match": tag}), 412)
    assert api.read(resource)["generation"] == 1


@BOTH_KINDS
def test_if_match_with_the_current_tag_lets_a_delete_through(waiting: Api, kind: str) -> None:
    api = waiting
    for form in ("{}", '"other", {}', "*"):
        resource = create(api, kind, f"r{len(form)}")
        tag, _ = read(api, resource)
        marked = delete(api, resource, **{"If-Match": form.format(tag)})
        assert marked["generation"] == 2
        tag, _ = read(api, resource)
        # Repeated with the tag of the marked resource, it changes nothing.
        assert delete(api, resource, **{"If-Match": form.format(tag)}) == marked
        refused(api.delete(at(resource), headers={"If-Match": '"other"'}), 412)
        assert finalize(api, resource).status_code == 201
        gone(api, resource)


def test_a_refused_delete_of_a_cluster_marks_no_node_pool(api: Api) -> None:
    cluster = api.cluster()
    pool = api.node_pool(cluster)
    before = read(api, pool)
    refused(api.delete(at(cluster), headers={"If-Match": '"other"'}), 412)
    assert read(api, pool) == before


@BOTH_KINDS
def test_if_match_on_an_unknown_resource_gets_404(api: Api, kind: str) -> None:
    path = f"{collection(create(api, kind))}/{NO_ID}"
    for tags in ("*", '"1"'):
        problem(api.patch(path, json={"spec": {}}, headers={"If-Match": tags}), 404)
        problem(api.delete(path, headers={"If-Match": tags}), 404)


@BOTH_KINDS
def test_if_match_lets_no_patch_of_a_marked_resource_through(waiting: Api, kind: str) -> None:
    api, resource = waiting, create(waiting, kind)
    delete(api, resource)
    before = read(api, resource)
    refused(change(api, resource, before[0]), 409)
    refused(change(api, resource, "*"), 409)
    assert change(api, resource, '"other"').status_code in (409, 412)
    assert read(api, resource) == before


# If-Match required


@BOTH_KINDS
def test_a_change_without_if_match_gets_428_if_the_service_requires_it(
    service: Callable[..., Api], kind: str
) -> None:
    api = service(
        require_if_match=True, required_adapters_cluster=("dns",), required_adapters_nodepool=("np",)
    )
    resource = create(api, kind)
    before = read(api, resource)
    for media_type in (JSON, MERGE):
        refused(patch(api, resource, {"spec": {"x": 1}}, media_type), 428)
        refused(patch(api, resource, {}, media_type), 428)
    refused(api.delete(at(resource)), 428)
    # If-None-Match is no substitute.
    refused(api.delete(at(resource), headers={"If-None-Match": before[0]}), 428)
    assert read(api, resource) == before
    refused(change(api, resource, '"other"'), 412)
    check(change(api, resource, before[0]))
    check(change(api, resource, "*", 2))
    assert delete(api, resource, **{"If-Match": read(api, resource)[0]})["generation"] == 4
    # Creations, reports and force-delete do not change a version that a client has read.
    response = api.report(resource, ADAPTER[kind], observed_generation=4)
    assert response.status_code == 201
    assert api.post(at(resource, "/force-delete"), json={"reason": "x"}).status_code == 204


def test_a_change_need_not_name_a_version_by_default(api: Api) -> None:
    cluster = api.cluster()
    check(patch(api, cluster, {"spec": {"x": 1}}))
    check(api.delete(at(cluster)), 202)


def test_two_editors_of_the_same_version_cannot_overwrite_each_other(api: Api) -> None:
    cluster = api.cluster(spec={"nodes": 3})
    hers, his = read(api, cluster), read(api, cluster)
    assert hers == his
    check(patch(api, cluster, {"spec": {**hers[1]["spec"], "zone": "a"}}, **{"If-Match": hers[0]}))
    edit = {"spec": {**his[1]["spec"], "nodes": 5}}
    refused(patch(api, cluster, edit, **{"If-Match": his[0]}), 412)
    his = read(api, cluster)
    edit = {"spec": {**his[1]["spec"], "nodes": 5}}
    merged = check(patch(api, cluster, edit, **{"If-Match": his[0]}))
    assert merged["spec"] == {"nodes": 5, "zone": "a"}


# Browsers


@BOTH_KINDS
def test_web_pages_may_read_etag_and_location(api: Api, kind: str) -> None:
    resource = create(api, kind)
    origin = {"Origin": ALLOWED}
    created = api.post(collection(resource), json={"name": "two", "spec": {}}, headers=origin)
    assert created.status_code == 201
    for response in (created, api.get(at(resource), headers=origin)):
        exposed = response.headers["Access-Control-Expose-Headers"].lower().replace(" ", "").split(",")
        assert {"etag", "location"} <= set(exposed)


@pytest.mark.parametrize(
    "header",
    [
        "If-Match",
        "If-None-Match",
        "Content-Type",
        "Idempotency-Key",
    ],
)
def test_web_pages_may_send_the_headers_of_the_contract(api: Api, header: str) -> None:
    preflight = api.options(
        "/clusters",
        headers={
            "Origin": ALLOWED,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": header.lower(),
        },
    )
    assert preflight.status_code in (200, 204), json.dumps(dict(preflight.headers))
    allowed = preflight.headers["Access-Control-Allow-Headers"].lower().replace(" ", "").split(",")
    assert header.lower() in allowed
