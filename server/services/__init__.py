"""The gRPC services: each method decodes, makes one store call and encodes."""
