"""gLExec: run a payload as the account of the person who owns it, and fail closed.

What the room promises: a payload starts only after its owner's proxy was verified and mapped to an account of
its own; no error ever leads to a payload that runs as the caller. ``contract`` is gLExec's interface (environment,
exit codes), ``launcher`` the root side, ``client`` the program a pilot calls, ``switchers`` what the pilot holds.

Standard library and ``cryptography`` only, Python 3.9. Import nothing here: the client must start fast.
"""
