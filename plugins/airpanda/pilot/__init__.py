"""The pilot: the program on the worker node that pulls jobs and runs each as its owner.

The room promises: nothing is asked for before the node has proved that it can run it; a payload runs under its
owner's identity, retrieved for this attempt and checked, or it does not run; the pilot never lends its own
credential or account; every way a job can end is reported with all errors, the most telling first; nothing of a job
stays on the node.

Values and rules: ``config``, ``errors``, ``wire``. I/O: ``client`` (dispatcher), ``probe`` (node), ``capture``
(payload output), ``heartbeat``, ``credentials``, ``staging`` (files), ``job`` (one job), ``agent`` (the loop),
``sweep`` (after a pilot that was killed). Python 3.9, standard library and ``cryptography``.
"""
