"""Statements of what is seen of attempts: samples, answers to debug requests, outputs that lie elsewhere."""

from airpanda.db.sql import anywhere, reports

# A repeat of a report writes nothing.
ADD_SAMPLES = """
INSERT INTO panda_sample (panda_id, attempt_nr, at_s, cpu_s, rss_mib, read_mib, written_mib, disk_mib, pss_mib,
                          processes)
SELECT $1, $2, * FROM unnest($3::float[], $4::float[], $5::float[], $6::float[], $7::float[], $8::float[], $9::float[],
                             $10::int[])
ON CONFLICT DO NOTHING
"""

COUNT_SAMPLES = "SELECT count(*) FROM panda_sample WHERE panda_id = $1 AND attempt_nr = $2"

# The first of each of $3 equal spans of time stays, and the last of all.
THIN_SAMPLES = """
DELETE FROM panda_sample s USING (
    SELECT at_s, row_number() OVER (PARTITION BY floor($3 * (at_s - low) / (high - low)) ORDER BY at_s) AS nr, high
    FROM (SELECT at_s, min(at_s) OVER () AS low, max(at_s) OVER () AS high
          FROM panda_sample WHERE panda_id = $1 AND attempt_nr = $2) AS each) AS spans
WHERE s.panda_id = $1 AND s.attempt_nr = $2 AND s.at_s = spans.at_s AND spans.nr > 1 AND s.at_s < spans.high
"""

SAMPLES = f"""
SELECT at_s, cpu_s, rss_mib, read_mib, written_mib, disk_mib, pss_mib, processes FROM {anywhere.SAMPLE} AS s
WHERE panda_id = $1 AND attempt_nr = (SELECT max(attempt_nr) FROM {anywhere.ATTEMPT} AS a WHERE panda_id = $1)
ORDER BY at_s
"""  # noqa: S608 - constants

# The same question again, not answered yet, stays as it is.
ASK = """
INSERT INTO panda_debug AS d (panda_id, attempt_nr, what, asked_by) VALUES ($1, $2, $3, $4)
ON CONFLICT (panda_id, attempt_nr) DO UPDATE
SET what = excluded.what, asked_by = excluded.asked_by, asked_at = now(), output = '', answered_at = NULL
WHERE d.what <> excluded.what OR d.answered_at IS NOT NULL
"""

ASKED = "SELECT what FROM panda_debug WHERE panda_id = $1 AND attempt_nr = $2 AND answered_at IS NULL"

ANSWER = """
UPDATE panda_debug SET output = $3, answered_at = now()
WHERE panda_id = $1 AND attempt_nr = $2 AND answered_at IS NULL
"""

LAST_DEBUG = """
SELECT what, output, answered_at FROM panda_debug WHERE panda_id = $1 ORDER BY attempt_nr DESC LIMIT 1
"""

# Of a job that is with a pilot.
RUNNING_ATTEMPT = "SELECT attempt_nr FROM panda_job WHERE panda_id = $1 AND pilot_id IS NOT NULL FOR SHARE"

SPEC = "SELECT spec FROM panda_job_spec WHERE panda_id = $1"

STORED = reports.STORED.format("$1", "$2")

STORED_NAMES = "SELECT lfn FROM panda_file WHERE panda_id = $1 AND attempt_nr = $2"

PUT_ELSEWHERE = """
INSERT INTO panda_file (panda_id, attempt_nr, lfn, size, sha256, adler32, access, url)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (panda_id, attempt_nr, lfn) DO UPDATE
SET size = excluded.size, sha256 = excluded.sha256, adler32 = excluded.adler32, url = excluded.url, created_at = now()
"""
