"""The service's settings, and the values they are made of."""
