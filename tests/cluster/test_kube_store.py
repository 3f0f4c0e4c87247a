"""The store of the cluster double behaves as the API server does."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.kube.api import Object, Refused, Store
from tests.kube.patches import PatchError, json_patch, merge_patch, strategic_patch

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"


def _pod(name: str, **spec: Any) -> Object:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "main"}], **spec}}


def _refusal(call: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        call()
    return refused.value.code, refused.value.message


def test_objects_are_copied_in_and_out() -> None:
    store = Store()
    pod = _pod("a")
    created = store.create("pods", pod)
    created["spec"]["containers"].clear()
    pod["spec"]["containers"].clear()
    stored = store.get("pods", "default", "a")
    assert stored is not None
    assert stored["spec"]["containers"] == [{"name": "main"}]
    assert stored["status"] == {"phase": "Pending"}
    assert stored["metadata"]["uid"]


def test_a_second_object_of_one_name_is_refused() -> None:
    store = Store()
    store.create("pods", _pod("a"))
    assert _refusal(lambda: store.create("pods", _pod("a"))) == (409, 'pods "a" already exists')


def test_lists_are_cut_by_namespace_and_labels() -> None:
    store = Store()
    store.create("namespaces", {"metadata": {"name": "other"}})
    for name, namespace in (("a", "default"), ("b", "default"), ("c", "other")):
        metadata = {"name": name, "namespace": namespace, "labels": {"name": name, "app": "x"}}
        store.create("pods", {"metadata": metadata, "spec": {}})
    names = [pod["metadata"]["name"] for pod in store.list("pods", labels={"app": "x"})]
    assert names == ["a", "b", "c"]
    assert len(store.list("pods", "default", {"app": "x", "name": "b"})) == 1
    assert store.list("pods", "default", {"name": "c"}) == []


def test_a_missing_namespace_is_refused() -> None:
    store = Store()
    pod = {"metadata": {"name": "a", "namespace": "nowhere"}, "spec": {}}
    assert _refusal(lambda: store.create("pods", pod)) == (404, 'namespaces "nowhere" not found')


def test_a_stale_version_is_a_conflict() -> None:
    store = Store()
    first = store.create("pods", _pod("a"))
    store.patch("pods", "default", "a", {"spec": {"nodeName": "n"}}, content_type=MERGE)
    code, message = _refusal(lambda: store.replace("pods", first))
    assert (code, "modified" in message) == (409, True)


def test_a_write_without_a_change_has_no_version() -> None:
    store = Store()
    pod = store.create("pods", _pod("a"))
    version = store.version
    store.replace("pods", pod)
    store.set_status("pods", "default", "a", {"phase": "Pending"})
    assert store.version == version


def test_only_set_status_writes_the_status() -> None:
    store = Store()
    pod = store.create("pods", _pod("a"))
    store.replace("pods", pod | {"status": {"phase": "Running"}})
    assert store.list("pods")[0]["status"] == {"phase": "Pending"}
    store.set_status("pods", "default", "a", {"phase": "Running"})
    pod = store.list("pods")[0]
    assert pod["status"] == {"phase": "Running"}
    assert pod["metadata"]["generation"] == 1


def test_a_bound_pod_gets_notice_and_is_then_finalized() -> None:
    store = Store()
    store.create("pods", _pod("a", nodeName="n", terminationGracePeriodSeconds=120))
    store.delete("pods", "default", "a")
    metadata = store.list("pods")[0]["metadata"]
    assert metadata["deletionGracePeriodSeconds"] == 120
    assert metadata["deletionTimestamp"]
    version = store.version
    store.delete("pods", "default", "a")
    assert store.version == version
    store.delete("pods", "default", "a", grace_s=5)
    assert store.list("pods")[0]["metadata"]["deletionGracePeriodSeconds"] == 5
    store.finalize("pods", "default", "a")
    assert store.list("pods") == []


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pods_off_nodes_and_ended_pods_go_at_once(phase: str) -> None:
    store = Store()
    store.create("pods", _pod("unbound"))
    store.create("pods", _pod("ended", nodeName="n"))
    store.set_status("pods", "default", "ended", {"phase": phase})
    for name in ("unbound", "ended"):
        store.delete("pods", "default", name)
    assert store.list("pods") == []


def test_an_object_goes_with_the_last_of_its_owners() -> None:
    store = Store()
    owners = [store.create("configmaps", {"metadata": {"name": name}}) for name in "ab"]
    references = [{"uid": owner["metadata"]["uid"], "name": "x"} for owner in owners]
    child = _pod("child")
    child["metadata"]["ownerReferences"] = references
    store.create("pods", child)
    store.delete("configmaps", "default", "a")
    assert len(store.list("pods")) == 1
    store.delete("configmaps", "default", "b")
    assert store.list("pods") == []
    store.create("pods", child)
    assert store.list("pods") == [], "its owners were gone before it came"


def test_finalizers_keep_a_deleted_object() -> None:
    store = Store()
    store.create("rayjobs", {"metadata": {"name": "a", "finalizers": ["x"]}, "spec": {}})
    store.delete("rayjobs", "default", "a")
    assert "deletionTimestamp" in store.list("rayjobs")[0]["metadata"]
    operations = [{"op": "replace", "path": "/metadata/finalizers", "value": []}]
    store.patch("rayjobs", "default", "a", operations, content_type=JSON)
    assert store.list("rayjobs") == []


def test_texts_of_a_secret_are_encoded() -> None:
    store = Store()
    secret = {"metadata": {"name": "a"}, "stringData": {"token": "abc"}}
    assert store.create("secrets", secret)["data"] == {"token": "YWJj"}


def test_a_watch_begins_with_existing_objects() -> None:
    store = Store()
    store.create("pods", _pod("a"))
    changes = store.watch("pods", timeout_s=20.0)
    assert next(changes)[1] == "ADDED"
    writer = threading.Thread(target=lambda: store.delete("pods", "default", "a"))
    writer.start()
    version, event, obj = next(changes)
    writer.join()
    assert (event, obj["metadata"]["name"]) == ("DELETED", "a")
    assert int(obj["metadata"]["resourceVersion"]) == version == store.version


def test_a_watch_from_a_version_shows_later_changes_only() -> None:
    store = Store()
    store.create("pods", _pod("a"))
    since = store.version
    store.create("secrets", {"metadata": {"name": "s"}})
    store.create("pods", _pod("b"))
    changes = list(store.watch("pods", since, timeout_s=0.0))
    assert [(event, obj["metadata"]["name"]) for _, event, obj in changes] == [("ADDED", "b")]


def test_admission_sees_old_and_new_and_fills_defaults() -> None:
    calls = []

    def admit(plural: str, obj: Object, old: Object | None, namespace: Object | None) -> None:
        calls.append((plural, old is not None, (namespace or {}).get("metadata", {}).get("name")))
        if plural == "pods":
            obj["spec"].setdefault("restartPolicy", "Always")

    store = Store(admit)
    calls.clear()
    assert store.create("pods", _pod("a"))["spec"]["restartPolicy"] == "Always"
    store.patch("pods", "default", "a", {"spec": {"nodeName": "n"}}, content_type=MERGE)
    assert calls == [("pods", False, "default"), ("pods", True, "default")]


def test_writers_in_parallel_lose_no_update() -> None:
    store = Store()
    store.create("configmaps", {"metadata": {"name": "a"}})

    def write(number: int) -> None:
        for each in range(50):
            patch = {"data": {f"{number}-{each}": "x"}}
            store.patch("configmaps", "default", "a", patch, content_type=MERGE)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.list("configmaps")[0]["data"]) == 200


def test_json_patches_as_sent_by_the_autoscaler() -> None:
    cluster = {"spec": {"groups": [{"replicas": 1}, {"replicas": 0}]}}
    path = "/spec/groups/1"
    patched = json_patch(
        cluster,
        [
            {"op": "replace", "path": f"{path}/replicas", "value": 3},
            {"op": "replace", "path": f"{path}/scaleStrategy", "value": {"workersToDelete": ["a"]}},
            {"op": "add", "path": "/spec/groups/-", "value": {}},
            {"op": "remove", "path": "/spec/groups/0"},
        ],
    )
    strategy = {"workersToDelete": ["a"]}
    assert patched == {"spec": {"groups": [{"replicas": 3, "scaleStrategy": strategy}, {}]}}
    assert cluster == {"spec": {"groups": [{"replicas": 1}, {"replicas": 0}]}}
    with pytest.raises(PatchError, match="is not 5"):
        json_patch(cluster, [{"op": "test", "path": "/spec/groups/0/replicas", "value": 5}])
    with pytest.raises(PatchError, match="does not exist"):
        json_patch(cluster, [{"op": "remove", "path": "/spec/none"}])


def test_merge_patches_remove_by_null() -> None:
    assert merge_patch({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": None}, "d": [2]}) == {
        "a": {"c": 2},
        "d": [2],
    }


def test_strategic_patches_merge_lists_by_key() -> None:
    pod = {"containers": [{"name": "a", "image": "1"}, {"name": "b"}], "tolerations": [1]}
    patch = {
        "$setElementOrder/containers": [{"name": "a"}],
        "containers": [{"name": "a", "image": "2"}, {"name": "b", "$patch": "delete"}],
        "tolerations": [2],
    }
    assert strategic_patch(pod, patch) == {
        "containers": [{"name": "a", "image": "2"}],
        "tolerations": [2],
    }
