"""Our tables in Airflow's metadata database: models, triggers, migrations and the statements of the hot path.

Every name starts with ``panda_``. ``airflow db migrate`` creates and upgrades them through
``manager.AirpandaDBManager``; nothing is created on import. PostgreSQL only: the job store is a queue with
``SKIP LOCKED``.
"""
