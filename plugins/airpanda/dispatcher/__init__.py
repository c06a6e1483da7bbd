"""The HTTP API between pilots, operators, people and the job store; what travels is in ``airpanda.messages``."""
