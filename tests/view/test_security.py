"""Requests without the token, from other sites or with paths are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ssd_ray.errors import UserError
from ssd_ray.view.app import application
from ssd_ray.view.runs import Runs
from ssd_ray.view.security import Access
from ssd_ray.view.server import ServerOptions, access_and_socket
from tests.support.synthetic_run import Made, make_run
from tests.view.conftest import TOKEN, client_of

BASE = "http://127.0.0.1:8765"


@pytest.fixture
def stranger(made: Made) -> TestClient:
    """A client without the token."""
    access = Access(host="127.0.0.1", port=8765, token=TOKEN)
    return TestClient(application(Runs.below([made.path]), access), base_url=BASE)


@pytest.mark.parametrize("path", ["/", "/answers?run=first", "/static/view.js", "/events", "/no"])
@pytest.mark.parametrize("query", ["", "token=", "token=wrong", "token=%00\ud7ff"])
def test_nothing_is_served_without_the_token(stranger: TestClient, path: str, query: str) -> None:
    joined = f"{path}{'&' if '?' in path else '?'}{query}"
    assert stranger.get(joined, follow_redirects=False).status_code == 403


def test_the_token_becomes_a_cookie_and_leaves_the_address(stranger: TestClient) -> None:
    reply = stranger.get(f"/run?run=first&token={TOKEN}", follow_redirects=False)
    assert reply.headers["location"] == "/run?run=first"
    assert "HttpOnly" in reply.headers["set-cookie"]
    assert TOKEN not in stranger.get("/run?run=first").text
    assert stranger.get("/run?run=first").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "elsewhere.invalid:8765"},
        {"host": "127.0.0.1:80"},
        {"host": ""},
        {"origin": "http://elsewhere.invalid"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:80"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
)
def test_other_hosts_and_sites_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/", headers=headers).status_code == 403


def test_the_own_page_and_a_link_of_a_colleague_pass(client: TestClient) -> None:
    assert client.get("/", headers={"origin": BASE}).status_code == 200
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=visit).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_the_server_only_reads(client: TestClient, method: str) -> None:
    assert client.request(method, "/").status_code == 405


def test_every_page_has_the_policy(client: TestClient) -> None:
    for path in ("/", "/answers?run=first", "/nothing", "/static/view.js", "/answers?run=no"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "/run?run=..",
        "/run?run=../first",
        "/run?run=/etc",
        "/answers?run=first%00",
        "/static/..%2fapp.py",
        "/static/%2e%2e/security.py",
        "/answer?run=first&in=../../etc&id=passwd&n=0",
        "/answer?run=first&in=generations/base&id=builtin/00&n=-1",
        "/probe?probe=../../etc/passwd",
        "//elsewhere.invalid/?token=" + TOKEN,
    ],
)
def test_no_path_leaves_the_directories(client: TestClient, path: str) -> None:
    reply = client.get(path, follow_redirects=False)
    assert reply.status_code in (303, 403, 404)
    assert not reply.headers.get("location", "/").startswith("//")
    assert "root:" not in reply.text


def test_links_out_of_the_directories_are_left_out(tmp_path: Path) -> None:
    outside = make_run(tmp_path / "outside").path
    (outside / "logs").mkdir()
    (outside / "logs" / "progress.log").write_text("a secret of another directory")
    inside = tmp_path / "runs" / "linked"
    (inside / "generations" / "base").mkdir(parents=True)
    (inside / "recipe.yaml").write_text("{}")
    for name in ("verdicts", "eval-prompts", "samples", "logs", "report"):
        (inside / name).symlink_to(outside / name)
    (inside / "generations" / "ssd").symlink_to(outside / "generations" / "ssd")
    shard = outside / "generations" / "base" / "part-00000.parquet"
    (inside / "generations" / "base" / "part-00000.parquet").symlink_to(shard)
    (tmp_path / "runs" / "all").symlink_to(outside)
    client = client_of(tmp_path / "runs")
    home = client.get("/")
    assert "linked" in home.text
    assert "run=all" not in home.text
    page = client.get("/run?run=linked")
    assert "a secret" not in page.text
    answers = client.get("/answers?run=linked")
    assert answers.status_code == 404
    assert "a link out of the directories" in answers.text
    assert client.get("/report?run=linked").status_code == 404


def test_other_hosts_need_a_token_and_a_used_port_is_named() -> None:
    with pytest.raises(UserError, match=r"--host 0\.0\.0\.0 lets other machines in"):
        access_and_socket(ServerOptions(host="0.0.0.0"))
    with pytest.raises(UserError, match="--token has 5 characters"):
        access_and_socket(ServerOptions(token="short"))
    access, listening = access_and_socket(ServerOptions())
    with listening, pytest.raises(UserError, match=f"--port {access.port} .* in use"):
        access_and_socket(ServerOptions(port=access.port))
