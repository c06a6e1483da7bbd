"""The one file of airpanda that Airflow scans: it declares, and decides nothing.

Airflow instantiates the plugin in every process and reads each attribute there, so everything is imported
only where it is used: the FastAPI application in the api-server alone.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin


class AirpandaPlugin(AirflowPlugin):
    """PanDA's dispatcher, served by the api-server below ``/panda``."""

    name = "airpanda"

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:
        """The dispatcher's application without the pilots' verbs: the gateway alone proves who a pilot is."""
        from airpanda.dispatcher.edge import airflow_app

        return [{"app": airflow_app(), "url_prefix": "/panda", "name": "PanDA dispatcher"}]
