"""The policy language: loading, planning and deciding; pure functions without SQL or I/O."""
