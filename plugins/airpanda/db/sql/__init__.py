"""Every SQL statement of the job store, by what it serves. Parameters are asyncpg's ``$n``.

Times are the database's own (``now()``), so that gateways with different clocks agree on leases.
"""
