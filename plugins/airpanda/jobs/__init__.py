"""PanDA's jobs: states, rules and the store.

The promise of this room: a job is never leased to two pilots, a report of a fenced attempt changes nothing, a
repeated call changes nothing, and every change of a status is one transaction with its row in the status log.
``rules`` are values; ``store`` is the only writer of job status.
"""
