"""The program that moves an owner's files, run under the owner's account in the sandbox by the identity switch.

A pilot's own rights must never open an owner's file or reach an owner's storage, so what opens them is not the pilot.
The carrier is told one round of transfers by a file, tries each once and says on its output, a line of JSON each, what
became of it. It decides nothing: what is tried again, and whose fault it is, are the pilot's rules (``transfers``).

It travels to the node's other account as a small archive of these modules, so they use the standard library alone.
"""
