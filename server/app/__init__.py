"""Where the service is built, started, supervised and drained."""
