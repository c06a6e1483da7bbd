"""Computing elements: where pilots are submitted, found again, and cancelled.

The room promises: a batch of n pilots is one call; a batch submitted twice under one tag exists once; whatever a
crash interrupts is found again by its tag; a secret reaches a pilot as a 0600 file and in no other way.

``queues`` reads a site's queue files, ``elements`` is the port with its states and errors, ``local`` runs pilots as
processes of an unprivileged account on this machine or on a worker node that a command reaches (``node_agent`` is
what runs there). ``batch`` runs them on a batch system: a transport (``transports``, ``ssh``) carries the programs of
``remote``, which speak one of the ``dialects``. ``arc`` runs them on an ARC CE: ``arc_description`` writes what it is
told, ``arc_answers`` reads what it says, ``arc_rest`` carries both.
``gram`` runs them on a Globus GRAM5 CE: ``gram_rsl`` has what is said to it, ``gram_client`` says it.
``kube`` runs them on a Kubernetes cluster: ``kube_objects`` has its objects, ``kube_api`` carries them.
``schedd`` hands them to an HTCondor schedd elsewhere, by bindings that ``schedd_agent`` uses in a process of its own.
"""
