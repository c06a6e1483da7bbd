"""What is true everywhere: identity, secrets, errors, time, settings.

Standard library only, Python 3.9: this room also runs on worker nodes and as root in the launcher.
"""
