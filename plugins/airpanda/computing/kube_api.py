"""One Kubernetes namespace by the official client: what each failure means, nothing repeated behind our back.

The client is an extra (``requirements-kubernetes.txt``) and slow to import: it is imported at the first call.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airpanda.computing.ces import KubernetesCE
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    InvalidDescriptionError,
    NotFoundAtCEError,
    ThrottledError,
)
from airpanda.computing.kube_objects import MANAGED
from airpanda.computing.refusals import lost, retry_after_s
from airpanda.core.secret import Secret

_CONNECT_S = 20.0
_PAGE = 500
_TOKEN = re.compile(r"[!-~]+")
Object = Mapping[str, Any]


class ConflictAtCEError(ComputingElementError):
    """The object exists already, or is no longer what was read."""

    code = "ce-conflict"


class KubeApi:
    """Jobs, pods and Secrets of one namespace, as plain values.

    Args:
        timeout_s: the longest one request may take.

    All methods raise, besides what they name:
        CECredentialError: the cluster does not accept the token, or its account may not do this.
        CEUnavailableError: no answer, or the cluster failed.
        ThrottledError: it asks for patience, or the namespace's quota is used up.
        InvalidDescriptionError: it will never take this.
    """

    def __init__(self, ce: KubernetesCE, token: Secret[str], *, timeout_s: float = 60.0) -> None:
        self.requests = 0
        self._ce, self._token, self._timeout_s = ce, token, timeout_s
        self._client: Any = None

    def create(self, kind: str, body: Object) -> Object:
        """Create a ``job`` or ``secret``.

        Raises:
            ConflictAtCEError: one of this name is there.
            SubmitUncertainError: no whole answer came.
        """
        made: Object = self._call(f"create_namespaced_{kind}", body=body, submitting=True)
        return made

    def job(self, name: str) -> Object | None:
        try:
            found: Object = self._call("read_namespaced_job", name)
        except NotFoundAtCEError:
            return None
        return found

    def jobs(self, selector: str = MANAGED) -> list[Object]:
        return self._list("list_namespaced_job", selector)

    def pods(self, selector: str = MANAGED) -> list[Object]:
        return self._list("list_namespaced_pod", selector)

    def patch_job(self, name: str, body: Object) -> None:
        """Merge into the Job; with a ``resourceVersion`` only where nobody has changed it since.

        Raises:
            ConflictAtCEError: somebody has.
        """
        self._call("patch_namespaced_job", name, body=body, _content_type="application/merge-patch+json")

    def delete_pods(self, selector: str, *, now: bool) -> None:
        """Have the cluster end these pods, within their grace time or at once."""
        more: dict[str, Any] = {"grace_period_seconds": 0} if now else {}
        self._call("delete_collection_namespaced_pod", label_selector=selector, **more)

    def delete_job(self, name: str) -> None:
        """Remove a Job with all that it owns."""
        try:
            self._call("delete_namespaced_job", name, propagation_policy="Background")
        except NotFoundAtCEError:
            return

    def log(self, pod: str, container: str, n_lines: int) -> bytes:
        """The end of what a container of a pod printed.

        Raises:
            NotFoundAtCEError: there is none.
        """
        more: dict[str, Any] = {"container": container, "tail_lines": n_lines, "_preload_content": False}
        answer = self._call("read_namespaced_pod_log", pod, raw=True, **more)
        return bytes(answer)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    # --- one request ----------------------------------------------------------------------------------------

    def _list(self, name: str, selector: str) -> list[Object]:
        found: list[Object] = []
        page = ""
        while True:
            more: dict[str, Any] = {"_continue": page} if page else {}
            answer = self._call(name, label_selector=selector, limit=_PAGE, **more)
            found += answer.get("items") or []
            page = (answer.get("metadata") or {}).get("continue") or ""
            if not page:
                return found

    def _call(self, name: str, *arguments: str, submitting: bool = False, raw: bool = False, **more: Any) -> Any:
        client = self._connected()
        from kubernetes.client import BatchV1Api, CoreV1Api
        from kubernetes.client.exceptions import ApiException, OpenApiException
        from urllib3.exceptions import HTTPError

        api = (BatchV1Api if "job" in name else CoreV1Api)(client)
        if submitting:
            more = {"_content_type": "application/json", **more}
        self.requests += 1
        timeout = (min(_CONNECT_S, self._timeout_s), self._timeout_s)
        try:
            call: Callable[..., Any] = getattr(api, name)
            answer = call(*arguments, namespace=self._ce.namespace, _request_timeout=timeout, **more)
            if not raw:
                return client.sanitize_for_serialization(answer)
            if answer.status >= 400:
                raise ApiException(
                    status=answer.status, reason=answer.reason, body=answer.data.decode("utf-8", "replace")
                )
            return answer.data
        except ApiException as error:
            if not error.status:  # the client's word for TLS that failed
                raise self._failure(str(error.reason), submitting) from error
            raise self._refusal(error, submitting) from error
        except (HTTPError, ssl.SSLError) as error:
            raise self._failure(f"{type(error).__name__}: {error}", submitting) from error
        except (OpenApiException, ValueError) as error:  # an answer that is none of Kubernetes
            # What they say may quote a request's headers, and the token is one.
            raise self._lost(submitting, f"gave an answer that cannot be understood ({type(error).__name__})") from None

    def _connected(self) -> Any:
        if self._client is None:
            try:
                from kubernetes.client import ApiClient, Configuration
            except ImportError as error:
                raise CEUnavailableError(
                    "this machine has no Kubernetes client: its administrator must install requirements-kubernetes.txt"
                ) from error
            self._check_ca_file()
            options = Configuration(host=self._ce.url, ssl_ca_cert=self._ce.ca_file)
            options.api_key = {"authorization": self._header()}
            options.api_key_prefix = {"authorization": "Bearer"}
            options.proxy, options.retries = None, False
            self._client = ApiClient(options)
        return self._client

    def _header(self) -> str:
        """The token; a secrets backend may keep the last line break of the file that it was in."""
        token = self._token.reveal().strip()
        if not _TOKEN.fullmatch(token):
            raise CECredentialError(
                f"the password of connection {self._ce.conn_id!r} is no token of a Kubernetes account; put one there"
            )
        return token

    def _check_ca_file(self) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self._ce.ca_file)
        except OSError as error:
            raise CECredentialError(
                f"[ce] ca_file = {self._ce.ca_file!r} holds no CA certificates that this account can read: the worker's"
                f" administrator must put the CA of the API server's certificate there: {error}"
            ) from error

    def _refusal(self, error: Any, submitting: bool) -> ComputingElementError:
        code, said = int(error.status), _message(error.body)
        text = f"{self._ce.url} answers {code}: {said or error.reason}"
        if code in (401, 403) and "exceeded quota" not in said:
            return CECredentialError(f"{text}; the token's account needs rights on jobs, pods and secrets there")
        if code == 429 or "exceeded quota" in said:
            return ThrottledError(text, retry_after_s=retry_after_s((error.headers or {}).get("Retry-After", "")))
        if code == 404:
            return (
                NotFoundAtCEError(text)
                if not submitting
                else InvalidDescriptionError(f"{text}; is there the namespace?")
            )
        if code == 409:
            return ConflictAtCEError(text)
        if code >= 500:
            return self._lost(submitting, f"failed with HTTP {code}: {said}")
        return InvalidDescriptionError(f"{text}; correct the queue file")

    def _failure(self, text: str, submitting: bool) -> ComputingElementError:
        said = " ".join(text.split())[:300]
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return CECredentialError(
                f"{self._ce.url} shows a certificate that [ce] ca_file does not vouch for: an administrator must find"
                f" out whether it is the cluster: {said}"
            )
        unsent = ("NewConnectionError", "ConnectTimeoutError", "NameResolutionError", "Connection refused")
        if any(word in said for word in unsent):
            return CEUnavailableError(f"{self._ce.url} cannot be reached: {said}")
        return self._lost(submitting, f"gave no whole answer ({said})")

    def _lost(self, submitting: bool, what: str) -> ComputingElementError:
        return lost(submitting, f"{self._ce.url} {what}")


def _message(body: object) -> str:
    """The sentence in an error of the API server."""
    try:
        found = json.loads(body) if isinstance(body, str | bytes) else {}
    except ValueError:
        return ""
    return str(found.get("message", "")) if isinstance(found, dict) else ""


def any_of(label: str, values: Sequence[str]) -> str:
    """A selector for objects whose label has one of these values."""
    return f"{label} in ({','.join(values)})"
