"""A multi-user pilot workload management system that lives inside Apache Airflow.

The rooms and the arrows between them are in ``docs/architecture.md``.
"""

__version__ = "0.1.0"
