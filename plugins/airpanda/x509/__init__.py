"""RFC 3820 proxies: build, read, verify chains, and read the VOMS attributes in them.

The room promises: an identity always comes from a certificate chain, never from a string; a chain is either
verified as a whole or refused with an error that says which certificate breaks which rule; private keys are
written 0600 and shown nowhere. Python 3.9, ``cryptography`` 38 and later, nothing else.
"""
