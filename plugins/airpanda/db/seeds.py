"""Retry rules that every installation begins with; operators add to them, change them and end them.

Only what helps the next attempt: more of what was lacking, or another node. None takes attempts from a user for what a
site did. Codes are PanDA's pilot errors (``common/errorcodes`` of pilot 3, and the first pilot's resubmission list).
"""

from __future__ import annotations

from sqlalchemy import Connection, MetaData, event, text

_ELSEWHERE = {
    100: ("jobDispatcher", "the pilot fell silent"),
    200: ("ddm", "an output is on no record"),
    1098: ("pilot", "no local space"),
    1099: ("pilot", "stage-in"),
    1110: ("pilot", "set-up"),
    1137: ("pilot", "stage-out"),
    1151: ("pilot", "stage-in took too long"),
    1152: ("pilot", "stage-out took too long"),
    1163: ("pilot", "no valid proxy on the node"),
    1186: ("pilot", "no software"),
    1195: ("pilot", "a command took too long"),
    1226: ("pilot", "the identity switch"),
    1306: ("pilot", "container"),
    1309: ("pilot", "container: mount"),
    1325: ("pilot", "no container runtime"),
    1340: ("pilot", "no user namespaces"),
    1379: ("pilot", "preempted"),
}
_MORE = {1212: "more_memory", 1235: "more_memory", 1213: "more_time", 1204: "more_time"}
_INSERT = """
INSERT INTO panda_retry_rule (source, code, action, description, set_by) VALUES ('{}', {}, '{}', '{}', 'seed')
"""


def statements() -> list[str]:
    """One INSERT for each rule."""
    rows = [(source, code, "retry_elsewhere", says) for code, (source, says) in _ELSEWHERE.items()] + [
        ("pilot", code, action, "") for code, action in _MORE.items()
    ]
    return [_INSERT.format(*row) for row in rows]


def attach(metadata: MetaData) -> None:
    """Run them whenever the tables are created through this MetaData."""

    def run(_target: MetaData, connection: Connection, **_: object) -> None:
        for statement in statements():
            connection.execute(text(statement))

    event.listen(metadata, "after_create", run)
