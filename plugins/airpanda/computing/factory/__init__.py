"""The pilot factory's judgement: how many pilots a queue needs, where to send them, and when to leave a site alone.

Pure functions of what the dispatcher knows and what the factory remembers; ``airpanda.hooks.factory`` acts on them.
"""
