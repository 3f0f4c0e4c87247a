"""A gated model without a token is refused on the head, with the remedy."""

from __future__ import annotations

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from ssd_ray.errors import OutsideError
from ssd_ray.models import hub


@pytest.mark.parametrize(
    ("token", "state"), [(None, "is missing (HF_TOKEN)"), ("hf_x", "is not accepted for it")]
)
def test_a_gated_model_names_the_state_of_the_token(
    monkeypatch: pytest.MonkeyPatch, token: str | None, state: str
) -> None:
    def download(*_: object, **__: object) -> str:
        raise GatedRepoError("403", response=httpx.Response(403, request=httpx.Request("GET", "x")))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    with pytest.raises(OutsideError) as error:
        hub.download("meta/gated", None)
    assert str(error.value) == (
        f"model.source 'meta/gated' is gated, and the hub's token {state}: accept the model's "
        "terms on its page, and set HF_TOKEN to a token of that account"
    )


def test_a_hub_out_of_reach_says_nothing_about_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(OutsideError, match=r"could not be downloaded .LocalEntryNotFoundError"):
        hub.download("meta/gated", None)
