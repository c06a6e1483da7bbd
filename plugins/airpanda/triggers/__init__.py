"""Waiting without a worker slot: one bounded poll per Airflow task, whatever the number of jobs behind it."""
