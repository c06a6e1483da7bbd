"""The dispatcher's verbs for payload owners: HTTPS with the owner's certificate, which proves who calls."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

from airpanda.core.errors import (
    AirpandaError,
    ConflictError,
    NotAuthorisedError,
    NotFoundError,
    RequestError,
    ServiceError,
)
from airpanda.myproxy import tls
from airpanda.x509.credential import ProxyCredential

MAX_ANSWER_BYTES = 4 * 1024 * 1024
_BY_STATUS: dict[int, type[AirpandaError]] = {403: NotAuthorisedError, 404: NotFoundError, 409: ConflictError}


class OwnerApi:
    """A dispatcher's gateway, as one owner sees it; one connection per call.

    Args:
        url: ``https://host:port`` of the gateway; behind Airflow's api-server owners are not known.
        credential: the end entity's, or a proxy made from it directly.

    Raises:
        RequestError: the URL is none.
    """

    def __init__(self, url: str, *, credential: ProxyCredential, ca_dir: Path, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise RequestError("the dispatcher's address must be https://HOST:PORT")
        self._host, self._port, self._base = parts.hostname, parts.port or 443, parts.path.rstrip("/")
        self._context = tls.client_context(ca_dir, credential, check_hostname=True)
        self._timeout_s = timeout_s

    def call(self, method: str, path: str, body: Optional[dict[str, Any]] = None) -> Any:
        """The JSON of the answer to ``/v1/owner/<path>``.

        Raises:
            NotAuthorisedError: the dispatcher does not accept the certificate, or this use of it.
            NotFoundError, ConflictError, RequestError: it refuses the request.
            ServiceError: it cannot be reached, or fails.
        """
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._context)
        content = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        try:
            connection.request(method, f"{self._base}/v1/owner/{path}", content, headers)
            response = connection.getresponse()
            raw = response.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(
                f"the dispatcher at {self._host} port {self._port} cannot be reached ({type(error).__name__}: {error});"
                " its operator must look whether the gateway runs and whether you trust the same CAs"
            ) from error
        finally:
            connection.close()
        return _read(response.status, raw)


def _read(status: int, raw: bytes) -> Any:
    try:
        answer = json.loads(raw)
    except ValueError:
        answer = None
    if status < 300 and answer is not None:
        return answer
    detail = answer.get("detail") if isinstance(answer, dict) else None
    text = str(detail)[:2000] if detail else f"the dispatcher answers {status} without a reason"
    if status == 401:
        raise NotAuthorisedError(text, authenticated=False)
    if status >= 500 or status < 400:
        raise ServiceError(text)
    raise _BY_STATUS.get(status, RequestError)(text)
