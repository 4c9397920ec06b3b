"""Who asks, and what they may do: pure code without SQL or I/O."""
