"""What batch systems want to hear and what they answer: pure functions from a batch to arguments, from text to states.

Every dialect is a module with one class that keeps ``port.Dialect``; nothing here does I/O.
"""
