"""Python functions that run on the grid as their owner: ``from airpanda.decorators.panda_task import panda_task``."""
