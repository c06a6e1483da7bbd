"""A stub of Kubernetes' API server, Job controller and kubelet, for one namespace: enough for Indexed Jobs of pilots.

``with running_kube(pki, directory) as kube``. It is no Kubernetes. It keeps what it is given, selects by labels,
refuses what exists and what is outdated, and runs each pod's command as a process of this account, with the files of
its Secret where the pod's paths point to (paths in scripts are rewritten); what only the first container mounts is gone
when it has ended. It imitates no images, containers,
scheduler, quotas, accounts, defaults or validation.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.pki import Pki

TOKEN = "stub-token"
INDEX = "batch.kubernetes.io/job-completion-index"
JOB = "batch.kubernetes.io/job-name"
_PATH = re.compile(r"/(?:api/v1|apis/batch/v1)/namespaces/ns/(jobs|pods|secrets)(?:/([a-z0-9-]+)(/log)?)?")


class Kube:
    """The cluster: objects by kind and name. ``answer`` replaces the next answers, for what goes wrong."""

    def __init__(self, directory: Path) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {"jobs": {}, "pods": {}, "secrets": {}}
        self.answer: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.seen: list[tuple[str, str, bytes]] = []
        self.hang_s = 0.0
        self.url = self.ca_file = ""
        self._directory, self._lock = directory, threading.RLock()
        self._versions = itertools.count(1)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._closed = threading.Event()

    # --- requests -------------------------------------------------------------------------------------------

    def handle(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        match = _PATH.fullmatch(parts.path)
        if match is None:
            return self._error(404, "the server could not find the requested resource")
        kind, name, log = match[1], match[2], match[3]
        with self._lock:
            self.seen.append((method, kind, body))
            if (method, kind) in self.answer:
                return self.answer[method, kind]
            if log:
                return self._log(name, query["container"])
            if method == "POST":
                return self._create(kind, json.loads(body))
            if name is None:
                chosen = self._chosen(kind, query.get("labelSelector", ""))
                if method == "DELETE":
                    for one in chosen:
                        self._end(one, int(query.get("gracePeriodSeconds", "60")))
                return self._page(chosen, query)
            if name not in self.objects[kind]:
                return self._error(404, f'{kind} "{name}" not found')
            return self._one(method, kind, name, body)

    def _one(self, method: str, kind: str, name: str, body: bytes) -> tuple[int, bytes]:
        found = self.objects[kind][name]
        if method == "PATCH":
            patch = json.loads(body)
            version = patch.get("metadata", {}).get("resourceVersion")
            if version and version != found["metadata"]["resourceVersion"]:
                return self._error(409, "the object has been modified")
            _merge(found, patch)
            self._touch(found)
            if kind == "jobs" and found["spec"].get("suspend"):
                for pod in self._chosen("pods", f"{JOB}={name}"):
                    self._end(pod, 60)
        if method == "DELETE":
            for pod in self._chosen("pods", f"{JOB}={name}"):
                self._end(pod, 0)
                self.objects["pods"].pop(pod["metadata"]["name"], None)
            self.objects["secrets"].pop(name, None)
            del self.objects[kind][name]
        return 200, json.dumps(found).encode()

    def _create(self, kind: str, body: dict[str, Any]) -> tuple[int, bytes]:
        name = body["metadata"]["name"]
        if name in self.objects[kind]:
            return self._error(409, f'{kind} "{name}" already exists')
        self._touch(body)
        body["metadata"] |= {"uid": f"uid-{name}", "creationTimestamp": _now()}
        self.objects[kind][name] = body
        if kind == "jobs":
            body["status"] = {}
            for index in range(body["spec"]["completions"]):
                self._add_pod(body, index)
        return 201, json.dumps(body).encode()

    def _add_pod(self, job: dict[str, Any], index: int) -> None:
        name = f"{job['metadata']['name']}-{index}"
        template = json.loads(json.dumps(job["spec"]["template"]))
        labels = {**template["metadata"]["labels"], JOB: job["metadata"]["name"], INDEX: str(index)}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels, "creationTimestamp": _now()},
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self._touch(pod)
        self.objects["pods"][name] = pod

    def lose_pod(self, tag: str, index: int) -> None:
        """As if the pod had never been made: nobody counts its end."""
        with self._lock:
            name = f"{self._job_of(tag)['metadata']['name']}-{index}"
            del self.objects["pods"][name]
            process = self._processes.pop(name)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
            shutil.rmtree(self._directory / name)

    def add_pod(self, tag: str, index: int) -> None:
        """What a controller does that is late."""
        with self._lock:
            self._add_pod(self._job_of(tag), index)

    def _job_of(self, tag: str) -> dict[str, Any]:
        jobs = self.objects["jobs"].values()
        return next(job for job in jobs if job["metadata"]["annotations"]["airpanda/tag"] == tag)

    def _page(self, chosen: list[dict[str, Any]], query: dict[str, str]) -> tuple[int, bytes]:
        start, limit = int(query.get("continue", "0")), int(query.get("limit", "100000"))
        more = {"continue": str(start + limit)} if start + limit < len(chosen) else {}
        return 200, json.dumps({"kind": "List", "metadata": more, "items": chosen[start : start + limit]}).encode()

    def _log(self, name: str, container: str) -> tuple[int, bytes]:
        path = self._directory / name / f"{container}.log"
        return (200, path.read_bytes()) if path.exists() else self._error(404, f'pods "{name}" not found')

    def _chosen(self, kind: str, selector: str) -> list[dict[str, Any]]:
        return [o for o in self.objects[kind].values() if _selected(o["metadata"].get("labels") or {}, selector)]

    def _touch(self, one: dict[str, Any]) -> None:
        one["metadata"]["resourceVersion"] = str(next(self._versions))

    @staticmethod
    def _error(code: int, text: str) -> tuple[int, bytes]:
        return code, json.dumps({"kind": "Status", "status": "Failure", "message": text, "code": code}).encode()

    # --- controller and kubelet -----------------------------------------------------------------------------

    def work(self) -> None:
        """Start pods whose Secret is there, and notice the ends."""
        while not self._closed.wait(0.05):
            with self._lock:
                for name, pod in list(self.objects["pods"].items()):
                    job = self.objects["jobs"].get(pod["metadata"]["labels"][JOB])
                    if job is not None:
                        self._step(name, pod, job)

    def _step(self, name: str, pod: dict[str, Any], job: dict[str, Any]) -> None:
        process = self._processes.get(name)
        if process is None and pod["status"]["phase"] == "Pending" and not job["spec"].get("suspend"):
            secret = self.objects["secrets"].get(pod["spec"]["volumes"][0]["secret"]["secretName"])
            if secret is not None:
                self._begin(name, pod, secret)
        elif process is not None and pod["status"]["phase"] == "Running" and process.poll() is not None:
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            phase, key = ("Succeeded", "completedIndexes") if code == 0 else ("Failed", "failedIndexes")
            pod["status"] |= {"phase": phase, "containerStatuses": [_ended(code)]}
            self._count(pod, key)

    def _count(self, pod: dict[str, Any], key: str) -> None:
        job, index = self.objects["jobs"][pod["metadata"]["labels"][JOB]], pod["metadata"]["labels"][INDEX]
        old = job["status"].get(key)
        job["status"][key] = f"{old},{index}" if old else index
        self._touch(job)

    def _begin(self, name: str, pod: dict[str, Any], secret: dict[str, Any]) -> None:
        """The first container to its end, then the pilot's, which sees nothing of the Secret."""
        first, index = pod["spec"]["initContainers"][0], pod["metadata"]["labels"][INDEX]
        root = self._directory / name
        for mount in first["volumeMounts"]:
            path = root / mount["mountPath"].lstrip("/")
            if mount["name"] != "start":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            expression = mount.get("subPath") or mount["subPathExpr"]
            key = expression.replace("$(AIRPANDA_INDEX)", index)
            path.write_text(_moved(base64.b64decode(secret["data"][key]).decode(), root))
            path.chmod(0o440)
        code = self._run(root, first).wait()
        shutil.rmtree(root / "airpanda")
        pod["status"] = {"phase": "Failed", "initContainerStatuses": [_ended(code)]}
        if code == 0:
            assert all(mount["name"] != "start" for mount in pod["spec"]["containers"][0]["volumeMounts"])
            self._processes[name] = self._run(root, pod["spec"]["containers"][0])
            pod["status"] |= {"phase": "Running", "containerStatuses": [_container({"running": {}})]}
        else:
            self._count(pod, "failedIndexes")

    @staticmethod
    def _run(root: Path, container: dict[str, Any]) -> subprocess.Popen[bytes]:
        command = [_moved(word, root) for word in container["command"]]
        with (root / f"{container['name']}.log").open("wb") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": "/usr/bin:/bin"}, cwd=root,
                start_new_session=True,
            )  # fmt: skip

    def _end(self, pod: dict[str, Any], grace_s: int) -> None:
        pod["metadata"]["deletionTimestamp"] = _now()
        process = self._processes.get(pod["metadata"]["name"])
        if process is None and pod["status"]["phase"] == "Pending":
            pod["status"] = {"phase": "Failed"}
            self._count(pod, "failedIndexes")
        elif process is None:
            return
        elif process.poll() is None:
            with suppress(ProcessLookupError):
                if grace_s == 0:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.terminate()

    def close(self) -> None:
        self._closed.set()
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _selected(labels: dict[str, str], selector: str) -> bool:
    for part in re.findall(r"[^,(]+(?:\([^)]*\))?", selector):
        if match := re.fullmatch(r"(\S+) in \(([^)]*)\)", part.strip()):
            if labels.get(match[1]) not in match[2].split(","):
                return False
        else:
            key, _, value = part.strip().partition("=")
            if labels.get(key) != value:
                return False
    return True


def _merge(old: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _merge(old[key], value)
        else:
            old[key] = value


def _container(state: dict[str, Any]) -> dict[str, Any]:
    """A container's status with what the official client wants to be there."""
    return {"name": "pilot", "image": "i", "imageID": "i", "ready": False, "restartCount": 0, "state": state}


def _ended(code: int) -> dict[str, Any]:
    return _container({"terminated": {"exitCode": code}})


def _moved(text: str, root: Path) -> str:
    """A program with the pod's own paths below ``root``."""
    return re.sub(r"(?<![\w/])/airpanda(-work)?(?=[/ \n])", rf"{root}/airpanda\1", text)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def running_kube(pki: Pki, directory: Path) -> Iterator[Kube]:
    kube = Kube(directory)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            time.sleep(kube.hang_s)
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                code, content = kube._error(401, "Unauthorized")
            else:
                code, content = kube.handle(self.command, self.path, body)
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if "/log" in self.path else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # clients that hang up are part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.host())
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    kube.url, kube.ca_file = f"https://localhost:{server.server_port}", str(pki.ca.cert)
    threads = [threading.Thread(target=target, daemon=True) for target in (server.serve_forever, kube.work)]
    for thread in threads:
        thread.start()
    try:
        yield kube
    finally:
        server.shutdown()
        server.server_close()
        kube.close()
