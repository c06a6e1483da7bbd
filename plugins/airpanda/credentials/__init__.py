"""Staged proxies: where they lie, until when, who may retrieve them, and a log of every use that only grows.

The promise of this room: the store holds pointers and sealed passphrases, never proxies; a passphrase leaves only
inside the lease of one job for one pilot; without its audit row nothing happens.
"""
