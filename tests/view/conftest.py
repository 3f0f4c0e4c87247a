"""A synthetic run behind the application, and a client with its token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ssd_ray.view.app import application
from ssd_ray.view.runs import Runs
from ssd_ray.view.security import Access
from tests.support.synthetic_run import Made, make_run

TOKEN = "a-token-for-tests"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A synthetic run in a directory of its own."""
    return make_run(tmp_path_factory.mktemp("runs") / "first")


def client_of(*directories: Path) -> TestClient:
    """Return a client of the application after it has shown its token."""
    access = Access(host="127.0.0.1", port=8765, token=TOKEN)
    client = TestClient(
        application(Runs.below(directories), access),
        base_url="http://127.0.0.1:8765",
        raise_server_exceptions=False,
    )
    client.get("/", params={"token": TOKEN})
    assert client.cookies
    return client


@pytest.fixture(scope="session")
def client(made: Made) -> Iterator[TestClient]:
    """A client over the synthetic run."""
    with client_of(made.path.parent) as client:
        yield client
