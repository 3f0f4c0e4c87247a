"""Start and end a cluster double on this machine: `python -m tests.kube up`, `… down`.

`up` leaves a process behind, applies an overlay, waits for its head, and prints two lines for the
shell. `down` ends that process, all pods, and everything it made.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.kube.cluster import Cluster
from tests.kube.machine import clear_all

TOP = Path(__file__).parents[2]
FOLDER = Path(tempfile.gettempdir()) / f"ssd-ray-cluster-{os.getuid()}"
START_S = 180.0
"""Longest wait for the API."""
HEAD_S = 300.0
"""Longest wait for a head."""


def main(words: list[str]) -> int:
    """Run a command. Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kube", description=__doc__)
    parser.add_argument("command", choices=("up", "down", "serve"))
    parser.add_argument("--overlay", default="", help="folder in k8s/overlays to apply")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="files of the cluster")
    arguments = parser.parse_args(words)
    try:
        if arguments.command == "serve":
            _serve(arguments.folder)
        elif arguments.command == "up":
            _up(arguments.folder, arguments.overlay)
        else:
            _down(arguments.folder)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _serve(folder: Path) -> None:
    """Run a cluster until SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    cluster = Cluster(folder)
    cluster.start()
    state = {"pid": os.getpid(), "note": cluster.machine.note}
    (folder / "state.json").write_text(json.dumps(state))
    stop.wait()
    cluster.close()


def _up(folder: Path, overlay: str) -> None:
    if overlay and not (TOP / "k8s" / "overlays" / overlay).is_dir():
        raise RuntimeError(f"--overlay {overlay}: k8s/overlays has no such folder")
    if _pid(folder) is not None:
        raise RuntimeError(f"a cluster runs in {folder}: end it with `make cluster-down`")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o711, parents=True)
    with (folder / "double.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.kube", "serve", "--folder", str(folder)],
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_S
    while not (folder / "state.json").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            text = (folder / "double.log").read_text()[-2000:]
            raise RuntimeError(f"the cluster did not start; {folder}/double.log ends with\n{text}")
        time.sleep(0.1)
    note = json.loads((folder / "state.json").read_text())["note"]
    if note:
        print(f"# {note}", file=sys.stderr)
    exports = {"KUBECONFIG": str(folder / "api" / "kubeconfig")}
    print(_export(exports))
    if overlay:
        _kubectl(folder, "apply", "-k", str(TOP / "k8s" / "overlays" / overlay))
        print(_export(_address(folder)))


def _address(folder: Path) -> dict[str, str]:
    """Return the variables for `ray job submit` once a head is ready."""
    deadline = time.monotonic() + HEAD_S
    while time.monotonic() < deadline:
        for cluster in _items(folder, "rayclusters", "-A"):
            metadata, status = cluster["metadata"], cluster.get("status", {})
            ready = {each["type"]: each["status"] for each in status.get("conditions", ())}
            if ready.get("HeadPodReady") != "True":
                continue
            variables = {"RAY_ADDRESS": f"http://{status['head']['podIP']}:8265"}
            names = ("-n", metadata["namespace"], "--field-selector")
            for secret in _items(folder, "secrets", *names, f"metadata.name={metadata['name']}"):
                token = base64.b64decode(secret["data"]["auth_token"]).decode()
                variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
            return variables
        time.sleep(0.5)
    raise RuntimeError(f"no head is ready after {HEAD_S:.0f} s: see `kubectl get pods -A`")


def _items(folder: Path, *words: str) -> list[Any]:
    items: list[Any] = json.loads(_kubectl(folder, "get", *words, "-o", "json"))["items"]
    return items


def _kubectl(folder: Path, *words: str) -> str:
    places = [sysconfig.get_path("scripts"), os.environ.get("PATH", "")]
    program = shutil.which("kubectl", path=os.pathsep.join(places))
    if program is None:
        raise RuntimeError("kubectl is missing: `make install` brings it")
    kubeconfig = str(folder / "api" / "kubeconfig")
    done = subprocess.run(
        [program, "--kubeconfig", kubeconfig, *words], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


def _export(variables: dict[str, str]) -> str:
    return "export " + " ".join(f"{name}={value}" for name, value in variables.items())


def _down(folder: Path) -> None:
    pid = _pid(folder)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        while _pid(folder) is not None:
            time.sleep(0.1)
    # A cluster that crashed left containers and networks behind.
    clear_all()
    shutil.rmtree(folder, ignore_errors=True)


def _pid(folder: Path) -> int | None:
    """Return the process of the cluster in a folder, if it runs."""
    try:
        pid = int(json.loads((folder / "state.json").read_text())["pid"])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, KeyError):
        return None
    # The number may belong to another process by now.
    return pid if str(folder).encode() in command and b"serve" in command else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
