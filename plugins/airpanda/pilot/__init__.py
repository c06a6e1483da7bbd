"""The pilot: the program on the worker node that pulls jobs and runs each as its owner.

The room promises: nothing is asked for before the node has proved that it can run it; a payload runs under its
owner's identity, retrieved for this attempt and checked, or it does not run; the pilot never lends its own
credential or account; every way a job can end is reported with all errors, the most telling first; nothing of a job
stays on the node.

Values and rules: ``config``, ``errors``, ``wire``, ``limits`` (what a payload may use), ``room`` (what is left of the
slot), ``trust`` (whose jobs to go on taking), ``command``, ``cgroups``. I/O: ``client`` (dispatcher), ``probe`` (node),
``sitechecks`` (the site's own), ``capture`` (payload output), ``heartbeat``, ``watch`` (measurements against limits),
``renewal`` and ``credentials`` (the owner's proxy), ``as_owner`` (small commands in a sandbox), ``staging`` (files),
``transfers`` and ``carrier`` (files of URLs, moved by their owner),
``job`` (one job), ``crew`` (jobs side by side), ``loop`` (asking for them), ``agent`` (the life), ``sweep`` (after a
pilot that was killed), ``bundle`` (all of it in one file). Python 3.9, standard library and ``cryptography``.
"""
