"""The gRPC server: addresses, TLS, health, reflection, shutdown."""
