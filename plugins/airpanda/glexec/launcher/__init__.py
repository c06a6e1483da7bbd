"""The root side: from a caller's proxy to a payload under its owner's account.

What it promises: every error ends before the payload starts; what is outside text never reaches a log line, a path
or a command unescaped; nothing of a run survives it, whatever dies first. ``daemon`` serves a root-owned socket,
``direct`` is started by sudo or root; both share ``run``. Single-threaded by design: it forks.
"""
