"""The gRPC services: each method takes a valid request, makes one store call and encodes the response."""
