"""The HTTP API between pilots, operators, people and the job store.

``messages`` is what travels and may be imported by every Airflow-side room; the rest of this room stays behind it.
"""
