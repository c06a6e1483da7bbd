"""Airflow operators: stage an owner's proxy, submit pilots, run gLExec-wrapped payloads.

Operators hold no database credentials; they talk to the dispatcher, MyProxy and the computing elements through
Airflow Connections. Nothing here works at parse time.
"""
