"""The gRPC server: addresses, TLS, health, readiness, reflection, the drain; no method of the contract."""
