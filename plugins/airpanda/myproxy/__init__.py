"""MyProxy: the wire protocol without I/O, a client, staging, and an embedded development server.

The room promises: values that could be read as protocol are refused before anything is sent; every buffer is
bounded; what a peer returns is checked (our key, a verified chain, the expected owner) before anybody sees it;
each error says who must act. Passphrases and keys are ``Secret`` or ``repr=False``.
"""
