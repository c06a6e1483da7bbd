"""Links from a task instance to what stands behind it."""
